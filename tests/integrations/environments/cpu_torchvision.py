"""Lets a CUDA build of torchvision be imported beside CPU torch.

Its compiled operators cannot be loaded there, and its import ends at two schemas that are missing.
They are declared just before it is imported; whoever calls the operators is told that there are
none. A .pth file beside this one imports it in every process.
"""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

BOXES = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"


class DeclareOperators(importlib.abc.MetaPathFinder):
    """A finder that finds nothing. Declares the operators when torchvision is first looked up."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            torch.library.define("torchvision::nms", BOXES)
            torch.library.define("torchvision::qnms", BOXES)
        return None


sys.meta_path.insert(0, DeclareOperators())

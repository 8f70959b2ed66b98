"""A CPU platform for vLLM-Omni, with which its own Helios can be timed without a GPU.

servers.py puts it on the path, with an entry point. helios-serve does not need it.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform
from vllm_omni.platforms.interface import OmniPlatform, OmniPlatformEnum


class CpuOmniPlatform(OmniPlatform, CpuPlatform):  # type: ignore[misc]
    """The platform interface of vLLM-Omni's workers, for the CPU."""

    _omni_enum = OmniPlatformEnum.OOT

    @classmethod
    def get_torch_device(cls, local_rank: int | None = None) -> torch.device:  # noqa: ARG003
        return torch.device("cpu")

    @classmethod
    def set_device(cls, device: torch.device) -> None:
        """Do nothing: there is only one device."""

    @classmethod
    def get_device_count(cls) -> int:
        return 1

    @classmethod
    def synchronize(cls) -> None:
        """Do nothing: a CPU computes synchronously."""

    @classmethod
    def empty_cache(cls) -> None:
        """Do nothing: there is no cache."""

    @classmethod
    def supports_torch_inductor(cls) -> bool:
        return False

    @classmethod
    def is_available(cls) -> bool:
        return False

    @classmethod
    def get_free_memory(cls, device: torch.device | None = None) -> int:  # noqa: ARG003
        return 1 << 33

    @classmethod
    def get_device_memory(cls, device: torch.device | None = None) -> tuple[int, int]:  # noqa: ARG003
        return 1 << 33, 1 << 33

    @classmethod
    def max_memory_reserved(cls) -> int:
        return 0

    @classmethod
    def max_memory_allocated(cls) -> int:
        return 0

    @classmethod
    def reset_peak_memory_stats(cls) -> None:
        """Do nothing: memory is not measured."""

    @classmethod
    def create_autocast_context(cls, **_: Any) -> AbstractContextManager[None]:
        return nullcontext()

    @classmethod
    def get_diffusion_attn_backend_cls(cls, *_: Any, **__: Any) -> str:
        return "omni_cpu_attention.CpuAttention"


def name_of_platform() -> str:
    return f"{__name__}.{CpuOmniPlatform.__name__}"

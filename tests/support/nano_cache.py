"""Where tests keep the checkpoint of nano, outside the user's cache."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def nano_cache(folders: pytest.TempPathFactory) -> Iterator[None]:
    """Let this process and its children make nano anew, once in a run of all pytest processes."""
    base = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of the run
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(base / "nano-cache"))
        yield

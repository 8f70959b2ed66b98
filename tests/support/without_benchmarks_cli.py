"""The `helios-serve` command where the benchmarks and their packages cannot be imported."""

import sys
from importlib.abc import MetaPathFinder
from typing import Any

MISSING = ("helios_serve.benchmarks", "aiohttp")


class Missing(MetaPathFinder):
    """A module finder that raises ModuleNotFoundError for every module."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname.startswith(MISSING):
            raise ImportError(f"no module named {fullname!r} for this test", name=fullname)


if __name__ == "__main__":
    sys.meta_path.insert(0, Missing())
    from helios_serve.entrypoints.cli.main import main

    sys.exit(main())

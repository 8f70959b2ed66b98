"""A GPU driver of some compute capability that launches nothing.

Triton's own launcher specialises and compiles each kernel for the arguments of a real call, with
which it would run it on such a GPU; only the launch is left out. Run as a script with a dtype and a
capability, such as 90, it calls the kernels at the published model's widths and prints, as JSON,
what each compiled one needs.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from helios_serve.kernels.registry import triton_kernels
from tests.support.kernel_cases import Make, large_cases

NVIDIA = Path(triton.__file__).parent / "backends/nvidia/bin"


class DryUtils:
    """The functions with which a compiled kernel is loaded onto a device. Keeps what was loaded."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, bytes, int]] = []

    def get_device_properties(self, _: int) -> dict[str, int]:
        return {"max_shared_mem": 1 << 30}

    def load_binary(self, name: str, cubin: bytes, shared: int, _: int) -> tuple[Any, ...]:
        self.loaded.append((name, cubin, shared))
        return "module", "function", 0, 0, 1024


class DryDriver:
    """The part of a driver that a launch uses."""

    def __init__(self, capability: int = 90) -> None:
        self.utils = DryUtils()
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def launcher_cls(self, *_: Any) -> Any:
        return lambda *_: None


def resources(cubin: bytes) -> dict[str, int]:
    """Return the registers, and the bytes of stack and local memory (spills), of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [NVIDIA / "cuobjdump", "--dump-resource-usage", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = {name: re.search(rf"\b{name}:(\d+)", text) for name in ("REG", "STACK", "LOCAL")}
    return {name: int(match[1]) for name, match in found.items() if match is not None}


def main() -> None:
    dry = DryDriver(int(sys.argv[2]))
    driver.set_active(dry)
    kernels = []
    make = Make(getattr(torch, sys.argv[1]))
    for case, call in large_cases().items():
        before = len(dry.utils.loaded)
        call(triton_kernels(), make)
        for name, cubin, shared in dry.utils.loaded[before:]:
            needs = resources(cubin) | {"SHARED": shared}
            kernels.append({"case": case, "kernel": name} | needs)
    print(json.dumps(kernels))


if __name__ == "__main__":
    main()

"""Which kernels and which attention a device gets, by default and by the environment."""

import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.errors import DeviceError
from helios_serve.kernels import backend, reference, registry
from helios_serve.kernels.backend import AttentionPath, KernelChoice, choose_kernels
from helios_serve.kernels.registry import REFERENCE
from helios_serve.kernels.rows import Lengths
from helios_serve.model_executor.device import resolve_device
from tests.support.kernel_cases import Make, attention_case, error

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks/micro/kernels.py"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HELIOS_KERNELS", "HELIOS_ATTENTION", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    backend._choose.cache_clear()
    yield
    backend._choose.cache_clear()


def pretend(patch: pytest.MonkeyPatch, installed: set[str], capability: int = 9) -> None:
    """Simulate a machine with the given modules and a GPU."""
    patch.setattr(backend, "is_installed", lambda module: module in installed)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))


def test_a_cpu_runs_the_references() -> None:
    assert choose_kernels(CPU) == KernelChoice("reference", "sdpa")


@pytest.mark.parametrize(
    ("installed", "capability", "path"),
    [
        ({"flash_attn_interface", "torch.nn.attention.varlen", "flash_attn"}, 9, "flash3"),
        ({"flash_attn_interface", "torch.nn.attention.varlen", "flash_attn"}, 8, "varlen"),
        ({"torch.nn.attention.varlen", "flash_attn"}, 9, "varlen"),
        ({"flash_attn"}, 9, "flash2"),
        ({"flash_attn"}, 7, "triton"),
        (set(), 9, "triton"),
    ],
)
def test_a_gpu_runs_triton_and_the_fastest_attention_there_is(
    installed: set[str], capability: int, path: AttentionPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, installed | {"triton"}, capability)
    assert choose_kernels(GPU) == KernelChoice("triton", path)


def test_a_gpu_without_triton_runs_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"flash_attn"})
    assert choose_kernels(GPU) == KernelChoice("reference", "sdpa")


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, {"triton", "flash_attn"})
    monkeypatch.setenv("HELIOS_KERNELS", "reference")
    assert choose_kernels(GPU) == KernelChoice("reference", "sdpa")
    monkeypatch.setenv("HELIOS_ATTENTION", "flash2")
    assert choose_kernels(GPU) == KernelChoice("reference", "flash2")
    monkeypatch.setenv("HELIOS_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("HELIOS_ATTENTION", "triton")
    assert choose_kernels(CPU) == KernelChoice("triton", "triton")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HELIOS_KERNELS", "cutlass", "got 'cutlass', expected reference or triton"),
        ("HELIOS_KERNELS", "triton", "got triton on cpu, but a CPU runs Triton kernels in the"),
        ("HELIOS_ATTENTION", "flash", "got 'flash', expected one of flash3, varlen, flash2"),
        ("HELIOS_ATTENTION", "flash3", "got flash3, which cpu cannot run"),
    ],
)
def test_a_wish_that_cannot_be_met_is_said_when_the_device_is_chosen(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=f"{name}: {message}"):
        resolve_device("cpu")


def test_triton_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, set())
    monkeypatch.setenv("HELIOS_KERNELS", "triton")
    with pytest.raises(ValueError, match="the package triton is not installed"):
        choose_kernels(GPU)


class Library:
    """A fake of a library's variable-length attention, computed by the reference."""

    def __init__(self, *, with_sums: bool) -> None:
        self.with_sums, self.calls = with_sums, 0

    def flash_attn_varlen_func(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        self.calls += 1
        cumulative, longest = rest[:2], rest[2:]
        assert all(item.dtype == torch.int32 for item in cumulative)
        queries, keys = (Lengths(item.diff().tolist(), query.device) for item in cumulative)
        assert longest == (queries.longest, keys.longest)
        mixed = reference.attention(query, key, value, queries, keys).view(query.shape)
        return (mixed, None) if self.with_sums else mixed


@pytest.mark.parametrize("path", ["flash3", "flash2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_libraries_attend_in_half_precision_without_a_bias(
    path: AttentionPath, dtype: torch.dtype, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(with_sums=path == "flash3")
    monkeypatch.setattr(backend, "import_module", lambda _: library)
    chosen = registry.implement(KernelChoice("reference", path))
    call = attention_case((5, 3), (7, 1), (2, 16), biased=biased)
    assert error(call(chosen, Make(dtype)), call(REFERENCE, Make(dtype))) == 0
    assert library.calls == (dtype == torch.float16 and not biased)


@pytest.mark.parametrize("path", ["flash3", "varlen", "flash2", "triton", "sdpa"])
def test_attention_follows_the_path_and_all_else_the_backend(path: AttentionPath) -> None:
    """Where a library cannot run, the reference runs in fp32, and the backend with a bias."""
    own = REFERENCE.attention
    kernels = registry.implement(KernelChoice("reference", path))
    if path in ("triton", "sdpa"):
        assert kernels == REFERENCE
    else:
        assert kernels == REFERENCE._replace(attention=backend.LibraryAttention(path, own, own))


def test_torch_takes_the_arguments_that_we_give() -> None:
    """Its operator has no CPU kernel to call it with."""
    from torch.nn.attention.varlen import varlen_attn

    names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert list(signature(varlen_attn).parameters)[:7] == names


WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def run_without(blocked: set[str], script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(blocked=blocked) + script],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_model_works_without_triton() -> None:
    script = """
import torch
import helios_serve.model_executor.models.helios.transformer
import helios_serve.model_executor.worker.history_pool
from helios_serve.kernels.backend import choose_kernels
print(choose_kernels(torch.device("cpu")))
"""
    assert run_without({"triton"}, script).stdout == "reference kernels, attention by sdpa\n"


def test_the_benchmark_needs_torch_triton_and_the_repository_alone() -> None:
    """It also needs a GPU; without one, it ends with a one-line error."""
    projects = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {name.partition(">")[0].replace("-", "_") for name in projects}
    done = run_without(
        (names | {"PIL"}) - {"torch", "numpy"},
        f"import runpy; runpy.run_path({str(BENCHMARK)!r}, run_name='__main__')",
    )
    assert done.stderr == "benchmarks/micro/kernels.py needs a GPU, and torch finds none here\n"


def test_the_benchmark_calls_kernels_as_they_are() -> None:
    benchmark = runpy.run_path(str(BENCHMARK))
    arguments = benchmark["parse_arguments"](
        ["--size", "96x80", "--heads", "2", "--head-dim", "16"]
    )
    sizes = benchmark["session_sizes"](arguments)
    assert sizes.tokens == 4 * 2 * 2 + 3 * 3 + 2 * 30 + 9 * 30
    works = benchmark["row_works"](sizes, CPU) | benchmark["sampler_works"](sizes, arguments, CPU)
    for work in works.values():
        work.call(REFERENCE)

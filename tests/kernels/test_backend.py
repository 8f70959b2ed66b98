"""Which kernels and which attention a device gets, by default and by the environment."""

import runpy
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from helios_serve.errors import DeviceError
from helios_serve.kernels import attention, backend, registry
from helios_serve.kernels.attention import AttentionPath
from helios_serve.kernels.backend import KernelChoice, choose_kernels
from helios_serve.kernels.registry import REFERENCE, triton_kernels
from helios_serve.kernels.rows import Lengths
from helios_serve.model_config import Geometry
from helios_serve.model_executor.device import resolve_device, resolve_kernels
from helios_serve.options.workers import AttentionBackend
from tests.support.kernel_cases import Make, attention_case, error
from tests.support.packed_forward import segment, tiny_transformer

ROOT = Path(__file__).parents[2]
BENCHMARK = ROOT / "benchmarks/micro/kernels.py"
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("HELIOS_KERNELS", "HELIOS_ATTENTION", "TRITON_INTERPRET"):
        monkeypatch.delenv(name, raising=False)
    clear()
    yield
    clear()


CACHED = backend._choose, attention.function_of, attention.version_of


def clear() -> None:
    for cached in CACHED:
        cached.cache_clear()


class Library:
    """A library's variable-length attention, computed by the reference."""

    def __init__(self, *, with_sums: bool) -> None:
        self.with_sums, self.calls = with_sums, 0

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Any:
        self.calls += 1
        cumulative, longest = rest[:2], rest[2:]
        assert all(item.dtype == torch.int32 for item in cumulative)
        queries, keys = (Lengths(item.diff().tolist(), query.device) for item in cumulative)
        assert longest == (queries.longest, keys.longest)
        mixed = REFERENCE.attention(query, key, value, queries, keys).view(query.shape)
        return (mixed, None) if self.with_sums else mixed

    def flash3(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        seqused_q: Tensor | None = None,
        seqused_k: Tensor | None = None,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Any:
        """The signature of FlashAttention 3, as far as it differs from that of 2."""
        assert (seqused_q, seqused_k, softmax_scale, causal) == (None, None, None, False)
        return self.attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)

    def flash2(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float = 0.0,
        softmax_scale: float | None = None,
        causal: bool = False,
    ) -> Any:
        """The signature of FlashAttention 2."""
        assert (dropout_p, softmax_scale, causal) == (0.0, None, False)
        return self.attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def install(patch: pytest.MonkeyPatch, module: str) -> Library:
    """Put a stand-in of a library where Python finds it."""
    library = Library(with_sums=module != "flash_attn")
    made = ModuleType(module)
    made.__spec__ = ModuleSpec(module, None)
    attend = library.flash2 if module == "flash_attn" else library.flash3
    made.flash_attn_varlen_func = attend  # type: ignore[attr-defined]
    patch.setitem(sys.modules, module, made)
    return library


VARLEN = "torch.nn.attention.varlen"
FLASH3 = ("flash_attn_interface", "fa3_fwd_interface")


def pretend(
    patch: pytest.MonkeyPatch, *installed: str, capability: int = 9, cudnn: int | None = 91900
) -> None:
    """A machine with an NVIDIA GPU and some modules; of those, libraries are stand-ins."""
    for module in set(installed) & {*FLASH3, "flash_attn"}:
        install(patch, module)
    for place in (attention, backend):
        patch.setattr(place, "is_installed", lambda module: module in installed)
        patch.setattr(place, "cudnn_version", lambda: cudnn)
    patch.setattr(attention, "version_of", lambda _: "")
    patch.setattr(torch.version, "hip", None)
    patch.setattr(torch.cuda, "get_device_capability", lambda _: (capability, 0))


def test_a_cpu_runs_the_references_and_names_its_attention() -> None:
    assert choose_kernels(CPU) == KernelChoice("reference", "cpu")


@pytest.mark.parametrize(
    ("installed", "capability", "cudnn", "path"),
    [
        ((*FLASH3, VARLEN, "flash_attn"), 9, 91900, "flash3"),
        (("fa3_fwd_interface", VARLEN), 9, None, "flash3"),
        ((VARLEN, "flash_attn"), 9, 91900, "cudnn"),
        ((VARLEN, "flash_attn"), 9, None, "varlen"),
        (("flash_attn",), 9, None, "flash2"),
        ((), 9, None, "triton"),
        # No FlashAttention 3 for Ampere and Ada, where cuDNN is no faster than varlen_attn.
        ((*FLASH3, VARLEN, "flash_attn"), 8, 91900, "varlen"),
        (("flash_attn",), 8, 91900, "flash2"),
        ((), 8, 91900, "triton"),
        ((*FLASH3, VARLEN, "flash_attn"), 10, 91900, "cudnn"),
        ((*FLASH3, VARLEN), 12, None, "varlen"),
        ((*FLASH3, VARLEN, "flash_attn"), 7, 91900, "triton"),
    ],
)
def test_a_gpu_runs_triton_and_the_fastest_attention_there_is(
    installed: tuple[str, ...],
    capability: int,
    cudnn: int | None,
    path: AttentionPath,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend(monkeypatch, *installed, "triton", capability=capability, cudnn=cudnn)
    choice = choose_kernels(GPU)
    assert (choice.backend, choice.attention) == ("triton", path)


def test_amd_gpus_run_neither_cudnn_nor_what_is_written_for_nvidia(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their capability has the numbers of another scale, and MIOpen calls itself cuDNN."""
    pretend(monkeypatch, *FLASH3, VARLEN, "flash_attn", "triton")
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert choose_kernels(GPU).attention == "flash2"
    assert attention.lack_on_gpu("cudnn", GPU) == "it needs an NVIDIA GPU"


def test_the_choice_names_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "fa3_fwd_interface", "triton")
    monkeypatch.setattr(attention, "version_of", lambda _: "0.0.3")
    assert str(choose_kernels(GPU)) == (
        "triton kernels, attention by flash3 (fa3_fwd_interface 0.0.3)"
    )
    assert str(choose_kernels(GPU, "cudnn")) == ("triton kernels, attention by cudnn (cuDNN 91900)")


def test_a_library_that_cannot_be_imported_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was built for another torch."""
    pretend(monkeypatch, "flash_attn_interface", "triton", VARLEN, cudnn=None)
    monkeypatch.delitem(sys.modules, "flash_attn_interface")

    def broken(module: str) -> ModuleType:
        raise ImportError(f"{module}: undefined symbol: _ZN2at6tensor")

    monkeypatch.setattr(attention, "import_module", broken)
    assert choose_kernels(GPU).attention == "triton"
    assert attention.lack_on_gpu("flash3", GPU) == (
        "flash_attn_interface cannot be imported: flash_attn_interface: undefined symbol: "
        "_ZN2at6tensor and fa3_fwd_interface is not installed"
    )


def test_a_gpu_without_triton_runs_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "flash_attn")
    assert choose_kernels(GPU) == KernelChoice("reference", "sdpa")


def test_the_option_outranks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "triton", "flash_attn", VARLEN)
    monkeypatch.setenv("HELIOS_KERNELS", "reference")
    assert choose_kernels(GPU) == KernelChoice("reference", "sdpa")
    monkeypatch.setenv("HELIOS_ATTENTION", "flash2")
    assert choose_kernels(GPU).attention == "flash2"
    assert choose_kernels(GPU, "varlen").attention == "varlen"
    monkeypatch.setenv("HELIOS_KERNELS", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("HELIOS_ATTENTION", "triton")
    assert choose_kernels(CPU) == KernelChoice("triton", "triton")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("HELIOS_KERNELS", "cutlass", "got 'cutlass', expected reference or triton"),
        ("HELIOS_KERNELS", "triton", "got triton on cpu, but a CPU runs Triton kernels in the"),
        ("HELIOS_ATTENTION", "flash", "got 'flash', expected one of flash3, cudnn, varlen, flash2"),
        (
            "HELIOS_ATTENTION",
            "flash3",
            "got flash3, which cpu cannot run: it needs an NVIDIA GPU. Available: cpu, sdpa",
        ),
    ],
)
def test_a_wish_that_cannot_be_met_is_said_when_the_device_is_chosen(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DeviceError, match=f"{name}: {message}"):
        resolve_device("cpu")


@pytest.mark.parametrize(
    ("path", "capability", "message"),
    [
        ("flash3", 8, "it needs compute capability 9.x, and cuda:0 has 8.0. Available: varlen"),
        ("flash3", 9, "flash_attn_interface is not installed and fa3_fwd_interface is not inst"),
        ("cudnn", 9, "this torch has no cuDNN. Available: varlen, triton, sdpa"),
        ("flash2", 7, "it needs compute capability 8.0 or higher, and cuda:0 has 7.0. Avail"),
        ("cpu", 9, "it needs a CPU"),
    ],
)
def test_a_refusal_says_what_is_missing_and_what_there_is(
    path: str, capability: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, "triton", VARLEN, capability=capability, cudnn=None)
    refusal = f"attention_backend: got {path}, which cuda:0 cannot run: {message}"
    with pytest.raises(DeviceError, match=refusal):
        resolve_kernels(GPU, path)


def test_triton_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch)
    monkeypatch.setenv("HELIOS_KERNELS", "triton")
    with pytest.raises(ValueError, match="the package triton is not installed"):
        choose_kernels(GPU)


def test_the_option_has_the_names_of_the_paths() -> None:
    """It is declared on another floor, which kernels do not import."""
    assert get_args(AttentionBackend) == (backend.AUTO, *backend.ATTENTION_PATHS)


@pytest.mark.parametrize(
    ("path", "module"), [("flash3", FLASH3[0]), ("flash3", FLASH3[1]), ("flash2", "flash_attn")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("biased", [False, True])
def test_libraries_attend_in_half_precision_without_a_bias(
    path: AttentionPath,
    module: str,
    dtype: torch.dtype,
    biased: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library = install(monkeypatch, module)
    chosen = registry.implement(KernelChoice("reference", path))
    call = attention_case((5, 3), (7, 1), (2, 16), biased=biased)
    assert error(call(chosen, Make(dtype)), call(REFERENCE, Make(dtype))) == 0
    assert library.calls == (dtype == torch.float16 and not biased)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("biased", [False, True])
def test_a_cpu_attends_by_the_function_that_sdpa_chooses_there(
    dtype: torch.dtype, biased: bool
) -> None:
    chosen = registry.implement(KernelChoice("reference", "cpu"))
    call = attention_case((5, 3), (7, 1), (2, 24), biased=biased)
    assert error(call(chosen, Make(dtype)), call(REFERENCE, Make(dtype))) == 0


def test_cudnn_attends_segment_by_segment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "cudnn_attend", attention.cpu_attend)
    chosen = registry.implement(KernelChoice("reference", "cudnn"))
    call = attention_case((5, 3), (7, 1), (2, 16), biased=False)
    make = Make(torch.bfloat16)
    assert error(call(chosen, make), call(REFERENCE, make)) == 0


def test_torch_has_the_cudnn_function_that_we_call() -> None:
    """It computes on GPUs alone; on the meta device torch checks the call and tells the shape."""
    query, key = (torch.empty(rows, 2, 16, dtype=torch.bfloat16, device="meta") for rows in (8, 11))
    chosen = registry.implement(KernelChoice("reference", "cudnn"))
    lengths = Lengths((5, 3), CPU), Lengths((7, 4), CPU)
    assert chosen.attention(query, key, key, *lengths).shape == (8, 32)


@pytest.mark.parametrize("path", ["flash3", "cudnn", "varlen", "flash2", "triton", "sdpa"])
def test_attention_follows_the_path_and_all_else_the_backend(path: AttentionPath) -> None:
    """Where a library cannot attend, SDPA does in fp32, and the backend with a bias."""
    own = REFERENCE.attention
    kernels = registry.implement(KernelChoice("reference", path))
    if path in ("triton", "sdpa"):
        assert kernels == REFERENCE
    else:
        assert kernels == REFERENCE._replace(attention=attention.LibraryAttention(path, own, own))


@pytest.mark.parametrize("path", ["flash3", "cudnn", "varlen", "flash2"])
def test_text_stays_in_triton(path: AttentionPath) -> None:
    kernels = registry.implement(KernelChoice("triton", path))
    assert kernels.text_attention is triton_kernels().attention
    assert isinstance(kernels.attention, attention.LibraryAttention)


def test_a_model_uses_the_path_for_itself_and_not_for_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt without padding has no bias, so that the library could attend to it."""
    library = install(monkeypatch, FLASH3[1])
    monkeypatch.setattr(backend, "lack_on_gpu", lambda *_: None)
    model = tiny_transformer(CPU, torch.bfloat16)
    segments = [segment(model, Geometry(64, 64), 0, 998.0)]
    assert segments[0].text.bias is None
    expected = model(segments)
    model.use_attention("flash3")
    assert str(model.kernels) == "reference kernels, attention by flash3 (fa3_fwd_interface)"
    assert torch.equal(model(segments), expected)
    assert library.calls == model.config.num_layers


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
    assert run_without({"triton"}, script).stdout == "reference kernels, attention by cpu\n"


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

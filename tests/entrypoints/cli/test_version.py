"""What `helios-serve version` prints, with which bug reports begin."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from helios_serve import __version__
from helios_serve.engine import versions
from helios_serve.entrypoints.cli.main import main
from helios_serve.kernels import attention, backend

SLOW = {"torch", "diffusers", "transformers"}
PROGRAM = f"""
import sys
from helios_serve.entrypoints.cli.main import main
status = main(["version"])
raise SystemExit(status or str({SLOW!r} & sys.modules.keys() or "") or 0)
"""


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    backend._choose.cache_clear()
    yield
    backend._choose.cache_clear()


def test_the_version_alone_is_printed_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"helios-serve {__version__}\n")


def test_verbose_names_packages_kernels_and_every_path_of_attention(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main(["version", "--verbose"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"helios-serve {__version__}"
    assert f"torch {torch.__version__}" in lines
    if not torch.accelerator.is_available():
        assert "cpu: reference kernels, attention by cpu" in lines
    paths = [line.split(": ")[1] for line in lines if ": attention by " in line]
    assert paths == [f"attention by {path}" for path in backend.ATTENTION_PATHS]


def test_verbose_tells_of_a_gpu_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one GPU, where nothing but torch is installed."""
    monkeypatch.setattr(attention, "is_installed", lambda _: False)
    monkeypatch.setattr(backend, "is_installed", lambda _: False)
    monkeypatch.setattr(attention, "cudnn_version", lambda: None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda _: (1, 85 * 10**9))
    found = list(versions.describe_device(torch.device("cuda", 0)))
    assert found == [
        "cuda:0: NVIDIA H100 80GB HBM3, 85.0 GB",
        "cuda:0: reference kernels, attention by sdpa",
        "cuda:0: attention by flash3: flash_attn_interface is not installed and "
        "fa3_fwd_interface is not installed",
        "cuda:0: attention by cudnn: this torch has no cuDNN",
        "cuda:0: attention by varlen: torch.nn.attention.varlen is not installed",
        "cuda:0: attention by flash2: flash_attn is not installed",
        "cuda:0: attention by triton: the package triton is not installed",
        "cuda:0: attention by cpu: it needs a CPU",
        "cuda:0: attention by sdpa: available",
    ]


def test_a_wish_that_cannot_be_met_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOS_ATTENTION", "fastest")
    assert main(["version", "--verbose"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("helios-serve: error: HELIOS_ATTENTION: got 'fastest', expected one of")

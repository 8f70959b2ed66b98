"""Servers of Helios on a CPU, each started as users do: ours, and vLLM-Omni's and SGLang's own.

The environments are those of `make test-vllm-omni` and `make test-sglang`. What vLLM-Omni and
SGLang lack on a machine without a GPU, modules beside this one supply as plugins.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from unittest import mock

ROOT = Path(__file__).parents[3]


class Peer(NamedTuple):
    """A server: the dialect of its API, and what runs it in a folder and yields its URL."""

    backend: str
    run: Callable[[Path, Path], AbstractContextManager[str]]


def tests_on_path() -> None:
    """Make `tests.support` importable, without the other folders of the repository's root."""
    folder = ROOT / "build" / "tests-path"
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / "tests").symlink_to(ROOT / "tests")
    sys.path.append(str(folder))


@contextmanager
def helios(model: Path, folder: Path) -> Iterator[str]:
    """Run our server, and yield its URL."""
    from tests.support.server import running_server

    flags = ("--model", str(model), "--device", "cpu")
    with running_server(folder / "data", *flags, log=folder / "server.log") as server:
        yield server.url


@contextmanager
def vllm_omni(model: Path, folder: Path) -> Iterator[str]:
    """Run vLLM-Omni with its own Helios, which makes one video at a time, and yield its URL."""
    with running_omni(model, folder, "--max-num-seqs", "1") as url:
        yield url


@contextmanager
def helios_in_vllm_omni(model: Path, folder: Path) -> Iterator[str]:
    """Run vLLM-Omni with our executor, and yield its URL."""
    from tests.support.omni_server import deploy_config, environment

    deploy = deploy_config(environment() / "bin")
    options = json.dumps({"helios": {"executor": "local"}})
    flags = ("--deploy-config", deploy, "--additional-config", options, "--max-num-seqs", "16")
    with running_omni(model, folder, *flags) as url:
        yield url


@contextmanager
def running_omni(model: Path, folder: Path, *flags: str) -> Iterator[str]:
    from tests.support.omni_server import environment, omni_server

    path = plugin(
        folder / "plugin",
        "[vllm_omni.platform_plugins]\ncpu = omni_cpu_platform:name_of_platform\n",
        "omni_cpu_platform.py",
        "omni_cpu_attention.py",
    )
    flags = (*flags, "--step-execution", "--diffusion-streaming-output")
    with omni_server(environment(), model, folder / "server.log", *flags, python_path=path) as own:
        yield own.url


@contextmanager
def sglang(model: Path, folder: Path) -> Iterator[str]:
    """Run SGLang with its own Helios (our plugin is not selected), and yield its URL."""
    from tests.support.sglang_server import running_sglang

    path = plugin(
        folder / "plugin",
        "[sglang.multimodal_gen.plugins]\ncpu_kernels = sglang_cpu_kernels:register\n",
        "sglang_cpu_kernels.py",
    )
    flags = ("--backend", "sglang", "--model-id", "Helios-Distilled")
    settings = {"SGLANG_PLUGINS": "cpu_kernels", "PYTHONPATH": str(path)}
    with mock.patch.dict(os.environ, settings), running_sglang(model, folder, {}, *flags) as server:
        yield str(server.http.base_url)


SERVERS = {
    "helios": Peer("helios", helios),
    "vllm-omni": Peer("vllm-omni", vllm_omni),
    "sglang": Peer("sglang", sglang),
    "helios-in-vllm-omni": Peer("vllm-omni", helios_in_vllm_omni),
}


def plugin(folder: Path, entry_points: str, *modules: str) -> Path:
    """Write a folder for Python's path with a distribution of these modules. Returns it."""
    metadata = folder / "cpu_plugin-0.dist-info"
    metadata.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cpu-plugin\nVersion: 0\n")
    (metadata / "entry_points.txt").write_text(entry_points)
    for name in modules:
        shutil.copy(Path(__file__).with_name(name), folder)
    return folder

"""A model that does not fit is refused before any allocation, with advice on what would fit."""

import resource
from pathlib import Path

import pytest
import torch

from helios_serve.entrypoints.cli.main import main
from helios_serve.errors import DeviceError
from helios_serve.model_executor import device as devices
from helios_serve.model_executor import memory
from helios_serve.model_executor.host_memory import Memory, host_memory
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.memory import MemoryCheck, is_out_of_memory, wait_for
from helios_serve.options.workers import Role, WorkerConfig, WorkerGroup
from tests.support.models import load_model

MODEL = "BestWishYsh/Helios-Distilled"
GIB = 1 << 30
MEMINFO = "MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 4194304 kB\n"


@pytest.fixture(scope="module")
def check() -> MemoryCheck:
    checkpoint = open_checkpoint(MODEL, "dummy")
    return MemoryCheck(MODEL, checkpoint.folder, checkpoint.config)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Fake gigabytes of free memory of the host and of a device, which tests change.

    There is no other memory, so that nothing waits until more is free.
    """
    amounts = [1.0, 1.0]

    def memory_of(place: int) -> Memory:
        size = int(amounts[place] * 1e9)
        return Memory(size, size)

    monkeypatch.setattr(memory, "host_memory", lambda: memory_of(0))
    monkeypatch.setattr(memory, "device_memory", lambda _: memory_of(1))
    return amounts


def refusal(check: MemoryCheck, *groups: WorkerGroup) -> str:
    with pytest.raises(DeviceError) as raised:
        check.check_host(groups)
    message = str(raised.value)
    assert "\n" not in message
    return message


def cpu(count: int = 1, *roles: Role, **options: object) -> WorkerGroup:
    config = WorkerConfig(device="cpu", **options)  # type: ignore[arg-type]
    if roles:
        config = WorkerConfig(device="cpu", roles=roles, **options)  # type: ignore[arg-type]
    return WorkerGroup(config, count)


@pytest.fixture
def fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that runs FP8 layers, as a CPU does with torch 2.12 and later."""
    monkeypatch.setattr(memory, "check_fp8", lambda *_: None)


@pytest.mark.usefixtures("fp8")
def test_what_does_not_fit_is_named_with_what_does(check: MemoryCheck, free: list[float]) -> None:
    free[0] = 20
    message = refusal(check, cpu())
    assert message.startswith(
        f"got 20.0 GB of free memory on the host, expected 80.5 GB for {MODEL} (transformer "
        "57.2 GB, text_encoder 22.7 GB, vae 0.5 GB): no option makes it fit: use a machine"
    )
    free[0] = 45
    expected = (
        "GB): use dtype bfloat16, which takes 40.6 GB, or use quantization fp8, which takes 38.3 "
        "GB; or use a machine"
    )
    assert expected in refusal(check, cpu())
    free[0] = 40
    assert "GB): use quantization fp8, which takes 38.3 GB; or" in refusal(check, cpu())
    free[0] = 30
    expected = "use dtype bfloat16 and quantization fp8, which takes 26.5 GB; or "
    assert expected in refusal(check, cpu())
    free[0] = 81
    check.check_host([cpu()])


def test_workers_are_counted_together_and_by_their_roles(
    check: MemoryCheck, free: list[float]
) -> None:
    free[0] = 170
    check.check_host([cpu(2)])
    message = refusal(check, cpu(3))
    assert "expected 241.4 GB for 3 workers with" in message
    assert "use 2 of the 3 workers, or use dtype bfloat16, which takes 121.7 GB" in message
    check.check_host([cpu(1, "encode", "decode"), cpu(2, "denoise")])
    free[0] = 100
    assert "(text_encoder 22.7 GB, vae 0.5 GB, transformer 114.5 GB)" in refusal(
        check, cpu(1, "encode", "decode"), cpu(2, "denoise")
    )


def test_a_history_pool_of_a_chosen_size_counts(check: MemoryCheck, free: list[float]) -> None:
    free[0] = 81
    blocks = 1_000_000  # of 4 KiB
    message = refusal(check, cpu(history_blocks=blocks))
    assert "history 4.1 GB" in message
    assert "use 12% of the history blocks" in message
    check.check_host([cpu(history_blocks=100_000)])


def test_a_device_and_the_host_of_its_offloaded_weights_are_checked(
    check: MemoryCheck, free: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "device_of", lambda _: torch.device("cuda", 0))
    monkeypatch.setattr(memory, "check_fp8", lambda *_: None)
    free[:] = 60, 80
    worker = WorkerConfig(device="cuda:0")
    check.check_worker(worker)
    free[1] = 38
    with pytest.raises(
        DeviceError, match=r"memory on cuda:0, expected 40\.4 GB.*use quant.* 26\.4"
    ):
        check.check_worker(worker, patience=0)
    free[1] = 8
    with pytest.raises(
        DeviceError, match=r"memory on cuda:0, .*: use offload, which takes 5\.2 GB"
    ):
        check.check_worker(worker, patience=0)
    offloaded = WorkerConfig(device="cuda:0", offload=True)
    check.check_worker(offloaded)
    free[0] = 30
    with pytest.raises(DeviceError, match=r"memory on the host, expected 39\.8 GB"):
        check.check_worker(offloaded, patience=0)
    check.check_host([WorkerGroup(worker, 8)])


def test_the_14b_model_is_refused_in_one_line_before_anything_is_allocated(
    free: list[float], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    free[0] = 20
    flags = ["--model", MODEL, "--load-format", "dummy", "--device", "cpu"]
    video = tmp_path / "x.mp4"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for words in (
        ["generate", "a dog", "--output", str(video)],
        ["serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
    ):
        assert main([*words, *flags]) == 2
        *_, line = capsys.readouterr().err.splitlines()
        assert line.startswith("helios-serve: error: got 20.0 GB of free memory on the host, exp")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
    assert not video.exists()


def test_small_models_are_checked_as_well(free: list[float]) -> None:
    free[0] = 0.001
    with pytest.raises(
        DeviceError, match=r"got 1\.0 MB of free memory on the host, expected \d+\.\d MB"
    ):
        load_model("nano")


def test_memory_of_a_process_that_just_ended_is_waited_for() -> None:
    amounts = iter([Memory(1, 10), Memory(2, 10), Memory(9, 10)])
    assert wait_for(8, lambda: next(amounts), patience=30) == 9
    assert wait_for(8, lambda: Memory(1, 7), patience=30) == 1  # it never becomes enough
    assert wait_for(8, lambda: Memory(1, 10), patience=0) == 1


def test_failed_allocations_are_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(raised.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


class Machine:
    """Files like those in /proc and /sys/fs/cgroup."""

    def __init__(self, folder: Path, cgroup: str) -> None:
        self.proc, self.cgroups = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMINFO)
        (self.proc / "self" / "cgroup").write_text(cgroup)

    def limit(self, folder: str, names: tuple[str, str], values: tuple[object, object]) -> None:
        path = self.cgroups / folder
        path.mkdir(parents=True, exist_ok=True)
        for name, value in zip(names, values, strict=True):
            (path / name).write_text(f"{value}\n")
        (path / "memory.stat").write_text(
            f"anon 1\ninactive_file {GIB // 4}\ntotal_inactive_file {GIB // 4}\n"
        )

    @property
    def memory(self) -> Memory:
        return host_memory(self.proc, self.cgroups)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


@pytest.mark.parametrize(
    ("cgroup", "folder", "names"),
    [
        ("0::/a/b\n", "a/b", V2),
        ("0::/a/b\n", "a", V2),
        ("0::/\n", "", V2),
        ("0::/outside/the/container\n", "", V2),
        ("1:cpu:/x\n0::/a\n", "unified/a", V2),
        ("5:cpuset,memory:/a\n0::/\n", "memory/a", V1),
        ("5:memory:/docker/abc\n", "memory", V1),
    ],
)
def test_limits_of_cgroups_count(
    cgroup: str, folder: str, names: tuple[str, str], tmp_path: Path
) -> None:
    machine = Machine(tmp_path, cgroup)
    assert machine.memory == (4 * GIB, 8 * GIB)
    machine.limit(folder, names, (3 * GIB, GIB))
    assert machine.memory == (2 * GIB + GIB // 4, 3 * GIB)
    machine.limit(folder, names, (GIB, 2 * GIB))
    assert machine.memory == (0, GIB)
    machine.limit(folder, names, (100 * GIB, GIB))
    assert machine.memory == (4 * GIB, 8 * GIB)
    machine.limit(folder, names, ("max", GIB))
    assert machine.memory == (4 * GIB, 8 * GIB)


def test_this_machine_has_memory() -> None:
    found = host_memory()
    assert 0 < found.free <= found.total
    assert devices.device_memory(torch.device("cpu")).total == found.total

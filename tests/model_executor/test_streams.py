"""What streams, events and copies to the host have to obey, with a device that is always late."""

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from helios_serve.errors import HeliosError
from helios_serve.kernels.rows import upload
from helios_serve.messages import RunnerOutput, SchedulerOutput, StepsDone, WorkerEvent
from helios_serve.model_executor import offload
from helios_serve.model_executor.loader import LoadedModel
from helios_serve.model_executor.streams import DeviceStreams, HostCopy
from helios_serve.model_executor.worker import kept_latents
from helios_serve.model_executor.worker.chunk_end import ChunkEnd, LaunchedPlan
from helios_serve.model_executor.worker.commands import Commands
from helios_serve.model_executor.worker.kept_latents import KeptLatents
from helios_serve.model_executor.worker.reports import PlanReports
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.model_executor.worker.warm_up import plans
from helios_serve.model_executor.worker.worker import Worker
from helios_serve.options.sampling import SamplingParams
from helios_serve.size import Size
from tests.support.late_device import LateDevice
from tests.support.models import load_model

PARAMS = SamplingParams(width=64, height=64, num_frames=33, steps=(1, 1, 1), use_zero_init=False)
HOST_READS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__")


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model("nano")


def chunk_plans(model: LoadedModel) -> list[SchedulerOutput]:
    return list(plans(("one", "other"), 40, PARAMS, model.config))


def outputs(worker_streams: DeviceStreams | None, model: LoadedModel) -> list[RunnerOutput]:
    """The outputs of all plans of a chunk, by a worker that runs in this thread."""
    events: list[WorkerEvent] = []
    worker = Worker(model, events.append, history_blocks=100, streams=worker_streams)
    commands = Commands()
    for plan in chunk_plans(model):
        commands.put(plan)
    commands.close()
    worker.run(commands)
    return [event.output for event in events if isinstance(event, StepsDone)]


def test_what_is_reported_was_copied_completely(model: LoadedModel) -> None:
    expected, got = outputs(None, model), outputs(LateDevice(), model)
    assert [len(output.chunks) for output in got] == [len(output.chunks) for output in expected]
    pairs = zip(got, expected, strict=True)
    for chunk, same in [
        pair for one, other in pairs for pair in zip(one.chunks, other.chunks, strict=True)
    ]:
        assert chunk.latents == same.latents
        assert chunk.snapshot == same.snapshot
    assert sum(len(output.chunks) for output in got) == 2


def test_the_thread_that_denoises_waits_for_no_copy(model: LoadedModel) -> None:
    """Only for the plan before the last one, as `Pace` says."""
    device = LateDevice()
    outputs(device, model)
    here = threading.current_thread().name
    assert "reports" in device.waited
    assert device.waited.count(here) == len(chunk_plans(model)) - 2


def test_launching_a_plan_reads_nothing_of_the_device(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker(model, lambda _: None, history_blocks=100, streams=LateDevice())
    assert worker.runner is not None
    first, *rest = chunk_plans(model)
    worker.runner.launch(first)  # opens the sessions, whose noise is drawn on the host
    here = threading.current_thread()

    def refuse(name: str) -> Any:
        kept = getattr(Tensor, name)

        def read(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
            assert threading.current_thread() is not here, f"Tensor.{name} waits for the device"
            return kept(tensor, *arguments, **options)

        return read

    for name in HOST_READS:
        monkeypatch.setattr(Tensor, name, refuse(name))
    launched = [worker.runner.launch(plan) for plan in rest]
    assert not any(plan.failures for plan in launched)
    assert sum(len(plan.ends) for plan in launched) == 2


def test_plans_go_on_while_a_chunk_is_copied() -> None:
    device, events = LateDevice(), queue.SimpleQueue[int]()
    copy = HostCopy(device, [torch.tensor(True)])
    device.gate.clear()
    slow = LaunchedPlan((end(copy),), (), 1.0)
    quick = LaunchedPlan((), (), 2.0)
    reports = PlanReports(
        lambda event: events.put(int(event.output.forward_seconds)), in_thread=True
    )
    with reports.running(interrupt=lambda: None):
        reports.put(slow, 0.0)
        reports.put(quick, 0.0)  # neither waits, nor overtakes
        assert events.empty()
        device.gate.set()
        assert [events.get(), events.get()] == [1, 2]


def end(copy: HostCopy) -> ChunkEnd:
    return ChunkEnd("one", 0, copy, num_frames=0, rng=b"", size=Size(64, 64))


def test_a_report_that_fails_ends_the_worker() -> None:
    interrupted = threading.Event()

    def emit(event: StepsDone) -> None:
        raise BrokenPipeError(event)

    def run() -> None:
        reports = PlanReports(emit, in_thread=True)
        with reports.running(interrupted.set):
            reports.put(LaunchedPlan((), (), 0.0), 0.0)
            assert interrupted.wait(10)

    with pytest.raises(BrokenPipeError):
        run()


def test_latents_that_are_not_finite_fail_their_session_once_they_are_known() -> None:
    device = LateDevice()
    latents = torch.full((1, 2), torch.nan)
    copy = HostCopy(device, [latents.isfinite().all(), latents, latents, latents])
    output = LaunchedPlan((end(copy),), (), 0.0).wait()
    assert output.chunks == ()
    [failure] = output.failures
    assert failure.message == "the latents of chunk 0 contain NaN or infinity"
    with pytest.raises(HeliosError):
        end(copy).result()


def test_kept_latents_are_read_after_they_are_written_and_before_they_are_freed() -> None:
    device = LateDevice()
    kept = KeptLatents(device)
    latents = torch.ones(2)
    kept.put("one", 0, latents)
    assert device.log == []
    assert kept.take("one", 1) is None
    assert kept.take("other", 0) is None
    assert kept.take("one", 0) is latents
    (waits, event), (shares, tensor) = device.log
    assert (waits, shares) == ("wait for", "share")
    assert isinstance(event, type(device.record()))
    assert tensor is latents
    assert kept.take("one", 0) is None


def test_the_oldest_latents_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_latents, "MAX_BYTES", 3 * 8)
    kept = KeptLatents(DeviceStreams(torch.device("cpu")))
    for chunk in range(4):
        kept.put("one", chunk, torch.full((2,), float(chunk)))
    kept.put("one", 3, torch.zeros(2))  # made again
    found = [kept.take("one", chunk) for chunk in range(4)]
    assert [None if item is None else item[0].item() for item in found] == [None, 1, 2, 0]


class RecordedStream:
    """A device's current stream, which keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []

    def record_event(self, event: object) -> None:
        self.told.append(("record", event))

    def wait_event(self, event: object) -> None:
        self.told.append(("wait", event))


class RecordedEvent:
    def __init__(self, device: torch.device, *, blocking: bool = False) -> None:
        self.device = device
        self.blocking = blocking


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> RecordedStream:
    stream = RecordedStream()
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch, "Event", RecordedEvent)
    return stream


def test_an_event_is_recorded_and_waited_for_on_the_current_stream(stream: RecordedStream) -> None:
    streams = DeviceStreams(torch.device("cuda", 1))
    event: Any = streams.record()
    streams.wait_for(event)
    assert stream.told == [("record", event), ("wait", event)]
    assert event.device == torch.device("cuda", 1)
    assert event.blocking, "a thread that waits would keep a core busy"


def test_shared_memory_and_copies_follow_the_current_stream(
    stream: RecordedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams, told = DeviceStreams(torch.device("cuda", 1)), []
    tensor = torch.arange(4.0)
    monkeypatch.setattr(Tensor, "record_stream", lambda own, other: told.append((own, other)))
    streams.share(tensor)
    assert told == [(tensor, stream)]
    options: list[tuple[str, object]] = []
    empty, copy = torch.empty, Tensor.copy_

    def pinned(*shape: Any, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        options.append(("pinned", pin_memory))
        return empty(*shape, dtype=dtype)

    def copied(own: Tensor, source: Tensor, *, non_blocking: bool) -> Tensor:
        options.append(("non_blocking", non_blocking))
        return copy(own, source)

    monkeypatch.setattr(torch, "empty", pinned)
    monkeypatch.setattr(Tensor, "copy_", copied)
    host = streams.to_host(tensor)
    monkeypatch.undo()
    assert torch.equal(host, tensor)
    assert options == [("pinned", True), ("non_blocking", True)]


def test_the_decoder_has_an_urgent_stream_and_the_encoder_another_one(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    @contextmanager
    def open_stream(device: torch.device, *, priority: int) -> Iterator[None]:
        assert device == torch.device("cuda", 0)
        opened.append(priority)
        yield

    monkeypatch.setattr(torch, "Stream", open_stream)
    streams = DeviceStreams(torch.device("cuda", 0))
    for is_urgent in (True, False):
        with streams.own(is_urgent=is_urgent):
            pass
    assert opened == [-1, 0]
    device, commands = LateDevice(), Commands()
    commands.close()
    Worker(model, lambda _: None, history_blocks=100, streams=device).run(commands)
    assert set(device.log) == {("urgent", "decoder"), ("own", "encoder")}


def test_a_cpu_has_nothing_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_stream", None)
    streams, tensor = DeviceStreams(torch.device("cpu")), torch.ones(2)
    [host] = HostCopy(streams, [tensor]).wait()
    assert host is tensor
    streams.wait_for(streams.record())
    streams.share(tensor)


def test_the_same_latents_come_from_messages(model: LoadedModel) -> None:
    """A chunk is the same whether its latents stay on the device or travel."""
    events: list[WorkerEvent] = []
    worker = Worker(model, events.append, history_blocks=100)
    for plan in chunk_plans(model):
        worker.execute(plan)
    chunks = [
        chunk for event in events if isinstance(event, StepsDone) for chunk in event.output.chunks
    ]
    for chunk in chunks:
        kept = worker.kept.take(chunk.session_id, chunk.chunk)
        assert kept is not None
        assert torch.equal(kept, as_tensor(chunk.latents)[0])


def test_uploads_do_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pinned memory, which the allocator keeps until the copy is done."""
    pinned: list[Tensor] = []

    def pin(own: Tensor) -> Tensor:
        pinned.append(own)
        return own

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    moves = []

    def to(own: Tensor, *place: Any, **options: Any) -> Tensor:
        moves.append((*place, options))
        return own

    monkeypatch.setattr(Tensor, "to", to)
    indices, device = torch.arange(3), torch.device("cuda:0")
    upload(indices, device)
    assert pinned == [indices]
    assert moves == [(device, {"non_blocking": True})]


class OrderedStream:
    """A stream that notes what it does, in order, and what it waits for."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self.log = log

    def wait_stream(self, other: "OrderedStream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: str) -> None:
        self.log.append(f"{self.name} waits for {event}")

    def record_event(self) -> str:
        self.log.append(f"{self.name} records")
        return "the copy"

    def __enter__(self) -> None:
        self.log.append(f"on {self.name}")

    def __exit__(self, *_: object) -> None:
        self.log.append(f"off {self.name}")


def test_offloaded_layers_are_copied_after_the_last_use_and_used_after_the_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    compute = OrderedStream("compute", log)
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda _: compute)
    monkeypatch.setattr(torch, "Stream", lambda _: OrderedStream("copies", log))
    monkeypatch.setattr(offload, "copy_all", lambda *_: log.append("copy"))
    copies = offload.CopyStream(torch.device("cuda"))
    copies.wait(copies.copy([], []))
    assert log == [
        *("copies waits for compute", "on copies", "copy", "off copies", "copies records"),
        "compute waits for the copy",
    ]

"""Starts an engine with its workers."""

from helios_serve.engine.loop.engine_core import EngineCore
from helios_serve.engine.loop.worker_pool import MAX_FAILED_STARTS
from helios_serve.engine.observe.observer import Observer, StepMetrics
from helios_serve.engine.observe.step_spans import StepSpans
from helios_serve.engine.observe.trace import Trace
from helios_serve.metrics import Metrics
from helios_serve.model_config import HeliosConfig
from helios_serve.model_executor.checks import check_context_parallel, check_executor, check_thread
from helios_serve.model_executor.executor.abstract import Executor
from helios_serve.model_executor.loader import open_checkpoint
from helios_serve.model_executor.memory import MemoryCheck
from helios_serve.options.engine import EngineConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import ExecutorKind, LoadFormat, WorkerGroup
from helios_serve.spans import Spans


def launch(
    model: str,
    groups: tuple[WorkerGroup, ...],
    kind: ExecutorKind,
    *,
    name: str | None = None,
    ray_address: str | None = None,
    scheduling: SchedulingConfig | None = None,
    trace: Trace | None = None,
    metrics: Metrics | None = None,
    spans: Spans | None = None,
    is_server: bool = True,
) -> EngineCore:
    """Return an engine whose workers are starting.

    `name` stands for the model in traces and metrics, instead of `model`. Workers of a server are
    restarted without limit if their starts fail.

    Raises CheckpointError for an invalid model, and DeviceError for an option that its workers or
    the executor cannot honor.
    """
    check_executor(kind)
    checkpoint = open_checkpoint(model, groups[0].config.load_format)
    for group in groups:
        check_context_parallel(group.config, checkpoint.config)
        if kind == "inline":
            check_thread(group.config)
    if kind != "ray":  # Ray's workers may run on other machines, and check their own memory
        MemoryCheck(model, checkpoint.folder, checkpoint.config).check_host(groups)
    config = EngineConfig(
        workers=tuple(group.config for group in groups for _ in range(group.count)),
        scheduling=scheduling or SchedulingConfig(),
        max_failed_starts=None if is_server else MAX_FAILED_STARTS,
    )
    executor = make_executor(kind, ray_address)
    observers: list[Observer] = []
    if trace is not None:
        observers.append(trace.of(name or model))
    if metrics is not None:
        observers.append(StepMetrics(metrics, name or model))
    core = EngineCore(executor, checkpoint.config, config, observers=tuple(observers))
    if spans is not None:
        core.observers.add(StepSpans(spans, core.decode_stage.assemblers, clock=core.clock))
    return core


def read_model_config(model: str, load_format: LoadFormat) -> HeliosConfig:
    """Return the configuration of a model, without reading weights. Raises CheckpointError."""
    return open_checkpoint(model, load_format).config


def make_executor(kind: ExecutorKind, ray_address: str | None) -> Executor:
    """Return an executor. It is imported only now, because importing Ray takes seconds."""
    match kind:
        case "inline":
            from helios_serve.model_executor.executor.inline import InlineExecutor

            return InlineExecutor()
        case "local":
            from helios_serve.model_executor.executor.local import LocalExecutor

            return LocalExecutor()
        case "ray":
            from helios_serve.model_executor.executor.ray import RayExecutor

            return RayExecutor(ray_address)

"""Prometheus metrics of the server. docs/metrics.md describes each one."""

from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

SHORT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LONG = (
    *(0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    *(200.0, 500.0, 1000.0, 2000.0, 5000.0),
)
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
MODEL = "model_name"
"""The label of a model, as in vLLM."""
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5)


class Totals(Collector):
    """A counter by model whose values are set, because they are counted elsewhere."""

    def __init__(self, name: str, help_text: str) -> None:
        self.name = name
        self.help_text = help_text
        self._totals: dict[str, float] = {}

    def set(self, model: str, total: float) -> None:
        self._totals[model] = total

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(f"helios:{self.name}", self.help_text, labels=[MODEL])
        for model, total in self._totals.items():
            family.add_metric([model], total)
        yield family


class HttpMetrics:
    """Metrics of the HTTP server, by the usual names."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "http_requests",
            "HTTP requests that were answered, and WebSockets that were closed",
            ("handler", "method", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "http_request_duration_seconds",
            "Time from a request to the last byte of its response",
            ("handler", "method"),
            buckets=SHORT,
            registry=registry,
        )


class ObjectMetrics:
    """Metrics of uploads to an object store. `operation` is `upload` or `delete`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.pending = Gauge(
            "helios:object_store_pending",
            "Videos whose objects are still to be uploaded or deleted",
            ("operation",),
            registry=registry,
        )
        self.failures = Counter(
            "helios:object_store_failures",
            "Failed attempts to upload or delete the objects of a video",
            ("operation",),
            registry=registry,
        )
        self.bytes = Counter(
            "helios:object_store_bytes", "Bytes uploaded to the object store", registry=registry
        )
        for operation in ("upload", "delete"):
            self.pending.labels(operation)
            self.failures.labels(operation)


class Metrics:
    """A registry with all metrics. Thread-safe.

    Names of our own start with `helios:`; those of the process and of HTTP are the usual ones.
    Labels take few values (model, status, stage, worker), and never request ids or prompts.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.http = HttpMetrics(self.registry)
        self.objects = ObjectMetrics(self.registry)
        self.requests = self._counter("requests", "Finished videos", "status")
        self.rejections = self._counter(
            "admission_rejections", "Requests rejected for lack of capacity", "reason"
        )
        self.frames = self._counter("frames_generated", "Frames delivered")
        self.queue_seconds = self._histogram(
            "request_queue_time_seconds", "Time from acceptance to the first denoise step", LONG
        )
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "Time from acceptance to completion", LONG
        )
        self.first_chunk_seconds = self._histogram(
            "time_to_first_chunk_seconds", "Time from acceptance to the first chunk", LONG
        )
        self.chunk_seconds = self._histogram(
            "inter_chunk_latency_seconds", "Time from one chunk of a video to the next", LONG
        )
        self.chunk_rtf = self._histogram(
            "chunk_rtf", "Time from one chunk to the next, divided by its playback time", RATIOS
        )
        self._add_stages()
        self.worker_deaths = self._counter(
            "worker_deaths", "Workers that died or were killed for not responding"
        )
        self.sessions = self._gauge("num_sessions", "Waiting and running sessions", "state")
        self.tasks = self._gauge("num_tasks_waiting", "Tasks waiting for a worker", "kind")
        self.blocks_used = self._gauge("history_blocks_used", "History blocks in use")
        self.blocks_total = self._gauge("history_blocks", "History blocks in all pools")
        self.workers = self._gauge(
            "worker_up",
            "1 if the worker takes new work, 0 if it starts, drains or failed",
            "worker",
        )
        self.worker_info = self._gauge(
            "worker_info",
            "1 for each worker that is ready, with its device and how it computes there",
            *("worker", "device", "kernels", "attention", "library"),
        )
        self.failed_workers = self._gauge("failed_workers", "Workers whose start failed last")
        self.outage_seconds = self._gauge("outage_seconds", "Time without a worker for some role")
        self.event_loop_tasks = Gauge(
            "helios:event_loop_tasks",
            "Tasks on the server's event loop; growth at constant load indicates a leak",
            registry=self.registry,
        )
        self.preemptions = self._totals(
            "preemptions", "Times that a session lost its blocks or its worker"
        )
        self.deadline_misses = self._totals(
            "chunk_deadline_misses", "Chunks of priority sessions that missed their deadline"
        )

    def _add_stages(self) -> None:
        """Add the metrics of steps and tasks."""
        self.step_seconds = self._histogram(
            "denoise_step_seconds", "Time of a denoise step of one batch", SHORT, "stage"
        )
        self.step_sessions = self._histogram(
            "step_batch_sessions", "Sessions in a denoise step", COUNTS
        )
        self.step_tokens = self._histogram("step_batch_tokens", "Tokens in a denoise step", TOKENS)
        self.decode_seconds = self._histogram(
            "vae_decode_seconds", "Time to decode a chunk's latents and encode its frames", SHORT
        )
        self.encode_seconds = self._histogram(
            "encode_seconds", "Time to encode the prompts and reference of a session", SHORT
        )

    def begin(self, model: str) -> None:
        """Begin the counters of a model at 0.

        Prometheus does not count the first increase of a counter that was not there before.
        """
        self.worker_deaths.labels(model)
        self.frames.labels(model)
        for status in ("completed", "failed", "cancelled"):
            self.requests.labels(model, status)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _totals(self, name: str, help_text: str) -> Totals:
        totals = Totals(name, help_text)
        self.registry.register(totals)
        return totals

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"helios:{name}", help_text, (MODEL, *labels), registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"helios:{name}", help_text, (MODEL, *labels), registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"helios:{name}",
            help_text,
            (MODEL, *labels),
            buckets=buckets,
            registry=self.registry,
        )

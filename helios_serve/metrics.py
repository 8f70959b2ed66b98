"""What is counted and timed, for Prometheus; docs/metrics.md says what each one means."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SHORT = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LONG = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
RATIOS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKENS = (1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5)


class Metrics:
    """One registry with everything in it; any thread may count.

    Names begin with helios: and labels are few: models, outcomes, stages, workers. Never ids of
    requests, nor prompts.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Videos that are over", "status")
        self.rejections = self._counter("admission_rejections", "Requests refused", "reason")
        self.frames = self._counter("frames_generated", "Frames that were handed on")
        self.queue_seconds = self._histogram(
            "request_queue_time_seconds", "From acceptance to the first step", LONG
        )
        self.request_seconds = self._histogram(
            "e2e_request_latency_seconds", "From acceptance to completion", LONG
        )
        self.first_chunk_seconds = self._histogram(
            "time_to_first_chunk_seconds", "From acceptance to the first chunk", LONG
        )
        self.chunk_seconds = self._histogram(
            "inter_chunk_latency_seconds", "From one chunk to the next", LONG
        )
        self.chunk_rtf = self._histogram(
            "chunk_rtf", "Time from one chunk to the next, over its playback time", RATIOS
        )
        self.step_seconds = self._histogram(
            "denoise_step_seconds", "Time of a batch's denoise step", SHORT, "stage"
        )
        self.step_sessions = self._histogram(
            "step_batch_sessions", "Sessions that share a denoise step", COUNTS
        )
        self.step_tokens = self._histogram("step_batch_tokens", "Tokens of a denoise step", TOKENS)
        self.decode_seconds = self._histogram(
            "vae_decode_seconds", "Latents of a chunk to frames and their encoding", SHORT
        )
        self.encode_seconds = self._histogram(
            "encode_seconds", "Prompts and references to what the model reads", SHORT
        )
        self.worker_deaths = self._counter("worker_deaths", "Workers that died or were killed")
        self.sessions = self._gauge("num_sessions", "Sessions", "state")
        self.tasks = self._gauge("num_tasks_waiting", "Tasks that no worker has taken", "kind")
        self.blocks_used = self._gauge("history_blocks_used", "Blocks that hold history")
        self.blocks_total = self._gauge("history_blocks_total", "Blocks of all pools")
        self.workers = self._gauge("worker_up", "1 for a worker that is ready, else 0", "worker")
        self.event_loop_tasks = Gauge(
            "helios:event_loop_tasks",
            "Activities of the server; more and more of them at the same load is a leak",
            registry=self.registry,
        )
        self.preemptions = self._gauge(
            "preemptions_total", "Sessions that lost their blocks or their worker so far"
        )
        self.deadline_misses = self._gauge(
            "chunk_deadline_miss_total", "Chunks of priority sessions that came late so far"
        )

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"helios:{name}", help_text, ("model", *labels), registry=self.registry)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Gauge:
        return Gauge(f"helios:{name}", help_text, ("model", *labels), registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"helios:{name}",
            help_text,
            ("model", *labels),
            buckets=buckets,
            registry=self.registry,
        )

"""A fake executor in virtual time: steps take cost / rate seconds, and nothing is computed."""

from collections import deque
from typing import Any

from helios_serve.config import SchedulingConfig
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.messages import (
    EncodedPrompt,
    ScheduledStep,
    SchedulerOutput,
    Snapshot,
    TensorData,
)
from helios_serve.model_config import (
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    HeliosConfig,
    SchedulerConfig,
    TransformerConfig,
)
from helios_serve.sampling_params import Frames, SamplingParams, VideoRequest

RATE = 1e15
QUEUE_DEPTH = 2
TEXT_ROWS = 100_000

CONFIG = HeliosConfig(
    variant="distilled",
    transformer=TransformerConfig(
        num_layers=40,
        num_attention_heads=40,
        attention_head_dim=128,
        ffn_dim=13824,
        text_dim=4096,
        rope_dim=(44, 42, 42),
    ),
    scheduler=SchedulerConfig(solver="dmd", time_shift_type="linear"),
)


def make_request(name: str, *, chunks: int = 1, video: bool = False, **fields: Any) -> VideoRequest:
    width, height = fields.pop("size", (640, 384))
    params = SamplingParams(width=width, height=height, num_frames=33 * chunks, fps=24)
    reference = Frames(b"", 70, height, width) if video else None
    return VideoRequest(request_id=name, prompt="x", params=params, video=reference, **fields)


def fake_snapshot(session: Session, chunk: int) -> Snapshot:
    """A snapshot before `chunk` without what is in it; a reference counts as 18 frames."""
    frames = min(HISTORY_FRAMES, CHUNK_LATENTS * chunk) or 18
    size = session.geometry.height, session.geometry.width
    return Snapshot(chunk, b"", b"", b"", frames, "float32", *size)


class World:
    """A scheduler, its clock, and workers that do each plan in the time that it costs."""

    def __init__(
        self,
        config: SchedulingConfig | None = None,
        *,
        workers: int = 1,
        num_blocks: int = 60 * 29 * 16 + 1,
        rate: float = RATE,
    ) -> None:
        self.now = 0.0
        self.rate = rate
        self.scheduler = Scheduler(config or SchedulingConfig(), lambda: self.now)
        self.queues: dict[str, deque[tuple[float, SchedulerOutput]]] = {}
        self.done: list[tuple[float, ScheduledStep]] = []
        self.forwards = 0
        self.delivered: dict[str, list[float]] = {}
        for index in range(workers):
            self.add_worker(f"worker-{index}", num_blocks)

    def add_worker(self, name: str, num_blocks: int) -> None:
        self.queues[name] = deque()
        self.scheduler.add_worker(name, num_blocks, TEXT_ROWS)

    def add(self, name: str, *, prompt_tokens: int = 20, **fields: Any) -> Session:
        """A session whose inputs are there already."""
        session = Session(make_request(name, **fields), CONFIG, arrival=self.now)
        states = TensorData(b"", (prompt_tokens, 4096), "float32")
        for text in session.missing_prompts:
            session.learn(EncodedPrompt(text, states))
        if session.needs_seed:
            session.seed(fake_snapshot(session, 0))
        self.scheduler.add_session(session)
        return session

    def plan(self, name: str) -> bool:
        """Give the worker one more plan, if its queue and the scheduler have room for one."""
        queue = self.queues[name]
        if len(queue) >= QUEUE_DEPTH:
            return False
        steps = self.scheduler.workers[name].plans
        output = self.scheduler.schedule(name)
        if not output.scheduled_steps:
            return bool(output.new_sessions)
        begun = max(self.now, queue[-1][0] if queue else self.now)
        queue.append((begun + steps[-1].cost / self.rate, output))
        return True

    def finish_one(self, name: str) -> None:
        """The worker returns its oldest plan."""
        end, output = self.queues[name].popleft()
        seconds = self.scheduler.workers[name].plans[0].cost / self.rate
        self.now = max(self.now, end)
        self.forwards += 1
        for step in output.scheduled_steps:
            self.done.append((self.now, step))
            session = self.scheduler.sessions.get(step.session_id)
            if session is None:
                continue
            counts = session.params.stage_steps(step.cursor.chunk)
            if step.cursor[1:] == (len(counts) - 1, counts[-1] - 1):
                snapshot = fake_snapshot(session, step.cursor.chunk + 1)
                self.scheduler.finish_chunk(step.session_id, snapshot)
                self.delivered.setdefault(step.session_id, []).append(self.now)
        self.scheduler.update_from_output(name, seconds)

    def tick(self) -> bool:
        """Fill all queues, then let the plan that ends first return; False if there is none."""
        for name in self.queues:
            while self.plan(name):
                pass
        busy = [name for name, queue in self.queues.items() if queue]
        if not busy:
            return False
        self.finish_one(min(busy, key=lambda name: self.queues[name][0][0]))
        return True

    def run(self, until: float = float("inf")) -> None:
        while self.now < until and self.tick():
            pass

    def service(self, prefix: str) -> float:
        """FLOPs done for the sessions whose names begin with `prefix`."""
        probe = Session(make_request("probe"), CONFIG, arrival=0.0)
        return sum(
            probe.step_costs[step.cursor.stage]
            for _, step in self.done
            if step.session_id.startswith(prefix)
        )

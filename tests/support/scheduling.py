"""A fake executor in virtual time: steps and tasks take cost / rate seconds, nothing is computed.

Its workers record what real ones would hold, and check each plan against that. Stages that run on
one worker at the same time share its device equally.
"""

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from helios_serve.core.cost import encode_cost
from helios_serve.core.decode_lead import DecodeLead
from helios_serve.core.device import Device, Stage
from helios_serve.core.plan_pace import QUEUE_DEPTH
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.core.worker_state import WorkerState
from helios_serve.messages import (
    DecodeTask,
    EncodedPrompt,
    EncodeTask,
    NewSession,
    ScheduledStep,
    SchedulerOutput,
    Snapshot,
    StepCursor,
    TensorData,
)
from helios_serve.model_config import (
    CHUNK_LATENTS,
    HISTORY_FRAMES,
    HeliosConfig,
    SamplerConfig,
    TransformerConfig,
)
from helios_serve.options.sampling import PromptSwitch, SamplingParams
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.video_request import Frames, VideoRequest

RATE = 1e15
SESSION_BLOCKS = 60 * 29
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
    scheduler=SamplerConfig(solver="dmd", time_shift_type="linear"),
)


def make_request(
    name: str,
    *,
    chunks: int = 1,
    video: bool = False,
    prompt: str = "x",
    switches: tuple[PromptSwitch, ...] = (),
    **fields: Any,
) -> VideoRequest:
    width, height = fields.pop("size", (640, 384))
    params = SamplingParams(
        width=width, height=height, num_frames=33 * chunks, fps=24, switches=switches
    )
    reference = Frames(b"", 70, height, width) if video else None
    return VideoRequest(request_id=name, prompt=prompt, params=params, video=reference, **fields)


def read(prompt: str, tokens: int = 20) -> EncodedPrompt:
    return EncodedPrompt(prompt, TensorData(b"", (tokens, 4096), "float32"))


def make_session(
    request: VideoRequest, config: HeliosConfig = CONFIG, *, arrival: float = 0.0, **fields: Any
) -> Session:
    return Session(request, request.resolve(config), config, arrival=arrival, **fields)


class Past(NamedTuple):
    """The anchor and the history frames of a session, by their names."""

    anchor: str
    frames: tuple[str, ...]

    @classmethod
    def of(cls, snapshot: Snapshot | None) -> "Past":
        if snapshot is None:
            return cls("", ())
        return cls(snapshot.anchor.decode(), tuple(snapshot.frames.decode().split()))

    def then(self, name: str, chunk: int) -> "Past":
        """Return the past after chunk `chunk` of video `name`."""
        made = tuple(f"{name}/{chunk}/{frame}" for frame in range(CHUNK_LATENTS))
        return Past(self.anchor or made[0], (*self.frames, *made)[-HISTORY_FRAMES:])

    def snapshot(self, session: Session, chunk: int) -> Snapshot:
        anchor, frames = self.anchor.encode(), " ".join(self.frames).encode()
        size = session.geometry.height, session.geometry.width
        return Snapshot(chunk, b"", anchor, frames, len(self.frames), "float32", *size)


def reference(session: Session) -> Snapshot:
    """Return the snapshot of an encoded reference video: an anchor and 18 frames."""
    name = session.session_id
    past = Past(f"{name}/anchor", tuple(f"{name}/before/{frame}" for frame in range(18)))
    return past.snapshot(session, 0)


class Opened(NamedTuple):
    """A session on a worker: its past, and the prompts that the worker has."""

    past: Past
    prompts: set[str]
    cursor: StepCursor | None = None


class Books:
    """What one worker holds: the name of each frame, by the frame's first block, and sessions."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.frames: dict[int, str] = {0: ""}
        self.opened: dict[str, Opened] = {}

    def execute(self, output: SchedulerOutput) -> dict[str, Snapshot]:
        """Execute a plan. Returns the snapshots of sessions that finished a chunk in it."""
        for name in output.finished:
            del self.opened[name]
        for new in output.new_sessions:
            self._open(new)
        made = {}
        for step in output.scheduled_steps:
            self._step(step)
            if (snapshot := self._finish(step)) is not None:
                made[step.session_id] = snapshot
        return made

    def _open(self, new: NewSession) -> None:
        assert new.session_id not in self.opened, f"{new.session_id} is open already"
        size = self.scheduler.sessions[new.session_id].geometry.blocks_per_frame
        told = Past.of(new.snapshot)
        self.frames |= dict(zip(new.blocks.window[::size], [told.anchor], strict=False))
        self.frames |= dict(zip(new.blocks.append[::size], told.frames, strict=False))
        past = Past.of(self.scheduler.sessions[new.session_id].snapshot)
        texts = [prompt.prompt for prompt in new.prompts]
        assert len(set(texts)) == len(texts), f"{new.session_id} is sent a prompt twice"
        self.opened[new.session_id] = Opened(past, set(texts))

    def _step(self, step: ScheduledStep) -> None:
        known = self.opened[step.session_id]
        assert known.cursor is None or known.cursor < step.cursor, (
            f"{step} is repeated or out of order"
        )
        assert (step.start is not None) == (step.cursor[1:] == (0, 0))
        self.opened[step.session_id] = known._replace(cursor=step.cursor)
        if step.start is None:
            return
        for prompt in step.start.new_prompts:
            assert prompt.prompt not in known.prompts, f"{step.session_id} is sent a prompt twice"
            known.prompts.add(prompt.prompt)
        assert known.prompts >= {item.prompt for item in step.start.mix}
        size = len(step.start.blocks.append) // CHUNK_LATENTS
        anchor, *frames = (self.frames[block] for block in step.start.blocks.window[::size])
        expected = known.past.frames
        assert anchor == known.past.anchor
        assert tuple(frames) == ("",) * (HISTORY_FRAMES - len(expected)) + expected
        made = known.past.then(step.session_id, step.cursor.chunk).frames[-CHUNK_LATENTS:]
        self.frames |= dict(zip(step.start.blocks.append[::size], made, strict=True))

    def _finish(self, step: ScheduledStep) -> Snapshot | None:
        """Return the session's snapshot if the step was the last one of its chunk."""
        session, chunk = self.scheduler.sessions[step.session_id], step.cursor.chunk
        counts = session.params.stage_steps(chunk)
        if step.cursor[1:] != (len(counts) - 1, counts[-1] - 1):
            return None
        known = self.opened[step.session_id]
        past = known.past.then(step.session_id, chunk)
        self.opened[step.session_id] = known._replace(past=past)
        return past.snapshot(session, chunk + 1)


class Given(NamedTuple):
    """A plan that a worker has, its seconds on a device, and the snapshots that it will return."""

    seconds: float
    output: SchedulerOutput
    snapshots: dict[str, Snapshot]


class Jobs:
    """The jobs of a worker, by stage: seconds left with the whole device, and the start time."""

    def __init__(self) -> None:
        self.left: dict[Stage, float] = {}
        self.begun: dict[Stage, float] = {}

    def begin(self, stage: Stage, seconds: float, now: float) -> None:
        self.left[stage], self.begun[stage] = seconds, now

    @property
    def next_end(self) -> float:
        """Seconds until the first job is done, if no other job begins."""
        return min(self.left.values()) * len(self.left)

    @property
    def first(self) -> Stage:
        return min(self.left, key=lambda stage: self.left[stage])

    def advance(self, seconds: float) -> None:
        for stage in self.left:
            self.left[stage] -= seconds / len(self.left)


class World:
    """A scheduler, its clock, and workers on which plans and tasks take cost / rate seconds.

    Without `decode_rate` (pixels per second), a chunk is delivered when it is denoised. Without
    `encode_rate`, inputs are available at once. Workers have all roles that have a rate, unless
    `add_worker` is given others.
    """

    def __init__(
        self,
        config: SchedulingConfig | None = None,
        *,
        workers: int = 1,
        num_blocks: int = SESSION_BLOCKS * 16 + 1,
        text_rows: int = TEXT_ROWS,
        rate: float = RATE,
        encode_rate: float | None = None,
        decode_rate: float | None = None,
    ) -> None:
        self.now = 0.0
        self.rate = rate
        self.encode_rate = encode_rate
        self.decode_rate = decode_rate
        self.scheduler = Scheduler(config or SchedulingConfig(), lambda: self.now)
        self.lead = DecodeLead(self.scheduler)
        self.books: dict[str, Books] = {}
        self.queues: dict[str, deque[Given]] = {}
        self.jobs: dict[str, Jobs] = {}
        self.done: list[tuple[float, ScheduledStep]] = []
        self.forwards = 0
        self.open: dict[str, Session] = {}
        """Sessions that have not delivered all their chunks."""
        self.delivered: dict[str, list[float]] = {}
        self.decoded: dict[str, set[int]] = {}
        self.tokens: dict[str, int] = {}
        for index in range(workers):
            self.add_worker(f"worker-{index}", num_blocks, text_rows)

    @property
    def all_roles(self) -> tuple[Stage, ...]:
        rates: dict[Stage, float | None] = {
            "encode": self.encode_rate,
            "denoise": self.rate,
            "decode": self.decode_rate,
        }
        return tuple(stage for stage, rate in rates.items() if rate)

    def add_worker(
        self,
        name: str,
        num_blocks: int = SESSION_BLOCKS * 16 + 1,
        text_rows: int = TEXT_ROWS,
        *,
        roles: Sequence[Stage] | None = None,
    ) -> None:
        device = Device(name, self.all_roles if roles is None else roles)
        self.scheduler.devices[name] = device
        self.jobs[name] = Jobs()
        if "denoise" in device.roles:
            self.books[name] = Books(self.scheduler)
            self.queues[name] = deque()
            self.scheduler.add_worker(name, num_blocks, text_rows)

    @property
    def decoders(self) -> int:
        """Devices that decode and take new work."""
        devices = self.scheduler.devices.values()
        return sum("decode" in item.roles and not item.is_draining for item in devices)

    def worker(self, name: str) -> WorkerState:
        return self.scheduler.workers[name]

    def lose_worker(self, name: str) -> None:
        """Remove a worker. Its tasks are queued again, and its sessions resume at a chunk edge."""
        device = self.scheduler.devices[name]
        encode = self.scheduler.encoding.lose(device, self.now)
        decode = self.scheduler.decoding.lose(device, self.now)
        del self.jobs[name]
        if name in self.queues:
            del self.queues[name], self.books[name]
            self.scheduler.remove_worker(self.worker(name))
        else:
            del self.scheduler.devices[name]
        for lost in encode:
            if lost.session in self.live:
                self.scheduler.encoding.requeue(lost, was_alone=False)
        for decoding in reversed(decode):
            if decoding.session.session_id in self.open:
                self.scheduler.decoding.requeue(decoding, was_alone=False)

    def add(
        self,
        name: str,
        *,
        ready: bool = True,
        tokens: int = 20,
        snapshot: Snapshot | None = None,
        siblings: tuple[str, ...] = (),
        **fields: Any,
    ) -> Session:
        """Add a session, with its inputs if `ready`. Its prompts have `tokens` tokens."""
        request = make_request(name, **fields)
        session = make_session(request, arrival=self.now, snapshot=snapshot, siblings=siblings)
        if ready and not self.encode_rate:
            self._learn(session, tokens)
        self.scheduler.add_session(session)
        self.open[name] = session
        self.tokens[name] = tokens
        self.lead.deliver(name, session.edge_chunk)
        if ready and self.encode_rate:
            seed_from = session.request if session.needs_seed else None
            texts = session.prompts.missing
            task = EncodeTask(name, texts, 512, seed_from)
            cost, due = encode_cost(len(texts), seed_from), session.clock.deadline(0, 0.0)
            self.scheduler.encoding.put(QueuedTask(task, session, cost, due))
        return session

    def abort(self, name: str) -> None:
        self.scheduler.abort(name)
        self.scheduler.encoding.forget(name)
        self.lead.forget(name)
        self.open.pop(name, None)

    def arrive(self, name: str, tokens: int = 20) -> list[PromptSwitch | None]:
        """Provide all missing inputs of a session. Returns the switches that this applies."""
        session = self.scheduler.sessions[name]
        self._learn(session, tokens)
        switches = [switch for _, switch in session.apply_switches()]
        self.scheduler.inputs_arrived(name)
        return switches

    def ask_to_switch(self, name: str, prompt: str) -> None:
        """Request a prompt switch, which applies once the prompt is encoded."""
        self.scheduler.sessions[name].prompts.pending.append(PromptSwitch(0, prompt))

    def switch(self, name: str, prompt: str, tokens: int = 20) -> PromptSwitch | None:
        """Switch a session to a prompt that is encoded at once."""
        self.ask_to_switch(name, prompt)
        return self.arrive(name, tokens)[-1]

    def fork(self, parent: Session, *names: str, **fields: Any) -> list[Session]:
        """Add sessions that continue from another one's last chunk edge."""
        snapshot, siblings = parent.snapshot, (parent.session_id, *names)
        size = parent.geometry.width, parent.geometry.height
        return [
            self.add(name, snapshot=snapshot, siblings=siblings, size=size, **fields)
            for name in names
        ]

    def _learn(self, session: Session, tokens: int) -> None:
        switches = [item.prompt for item in session.prompts.pending]
        for text in dict.fromkeys((*session.prompts.missing, *switches)):
            if text not in session.prompts.encoded:
                session.prompts.learn(read(text, tokens))
        if session.needs_seed:
            session.seed(reference(session))

    def plan(self, name: str) -> bool:
        """Send the worker one more plan, if its queue has room and the scheduler has steps."""
        queue, worker = self.queues[name], self.worker(name)
        if sum(bool(given.output.scheduled_steps) for given in queue) >= QUEUE_DEPTH:
            return False
        output = self.scheduler.schedule(worker)
        if output.is_empty:
            return False
        snapshots = self.books[name].execute(output)
        queue.append(Given(worker.plans[-1].cost / self.rate, output, snapshots))
        self._finish_bookkeeping(name)
        return bool(output.scheduled_steps or output.new_sessions)

    def finish_one(self, name: str) -> None:
        """Let the worker return its oldest plan, and the plans without steps that follow it."""
        self._advance_to(name, "denoise")
        _, output, snapshots = self.queues[name].popleft()
        seconds = self.now - self.jobs[name].begun["denoise"]
        self.forwards += 1
        self.done += [(self.now, step) for step in output.scheduled_steps]
        for session_id, snapshot in snapshots.items():
            self.scheduler.finish_chunk(session_id, snapshot)
            self._denoised(session_id, snapshot.chunk - 1, name)
        self.scheduler.update_from_output(self.worker(name), seconds)
        self._finish_bookkeeping(name)

    def _denoised(self, session_id: str, chunk: int, worker: str) -> None:
        if (session := self.open.get(session_id)) is None:
            return
        if self.decode_rate is None:
            self._decoded(session, chunk)
            return
        latents = TensorData(b"", (), "float32")
        task = DecodeTask(session_id, chunk, latents, num_frames=33, fps=24, output="frames")
        self.lead.put(session, task, worker)

    def _decoded(self, session: Session, chunk: int) -> None:
        """Deliver the chunks that are next in order."""
        name = session.session_id
        decoded = self.decoded.setdefault(name, set())
        decoded.add(chunk)
        times = self.delivered.setdefault(name, [])
        for index in range(self.lead.next_chunk(name), session.params.num_chunks):
            if index not in decoded:
                break
            times.append(self.now)
            self.scheduler.deliver_chunk(session, index)
            self.lead.deliver(name, index + 1)
            if index + 1 == session.params.num_chunks:
                self.lead.forget(name)
                del self.open[name]

    def finish_task(self, name: str, stage: Stage) -> None:
        """Let the worker return an encode or decode task."""
        device = self.scheduler.devices[name]
        self._advance_to(name, stage)
        seconds = self.now - self.jobs[name].begun[stage]
        if stage == "encode":
            done = self.scheduler.encoding.finish(device, self.now, seconds)
            if done.session in self.live:
                self.arrive(done.session.session_id, self.tokens[done.session.session_id])
        else:
            chunk = self.scheduler.decoding.finish(device, self.now, seconds)
            if chunk.session.session_id in self.open:
                assert isinstance(chunk.task, DecodeTask)
                self._decoded(chunk.session, chunk.task.chunk)

    def _finish_bookkeeping(self, name: str) -> None:
        """Let the worker return plans without steps at once, and begin the next one with steps."""
        queue = self.queues[name]
        while queue and not queue[0].output.scheduled_steps:
            queue.popleft()
            self.scheduler.update_from_output(self.worker(name))
        if queue and "denoise" not in self.jobs[name].left:
            self.jobs[name].begin("denoise", queue[0].seconds, self.now)

    def _advance_to(self, name: str, stage: Stage) -> None:
        """Advance the clock until the worker has finished the stage's job."""
        left = self.jobs[name].left
        self._pass_time(max(0.0, left[stage] * len(left)))
        del left[stage]

    def _pass_time(self, seconds: float) -> None:
        self.now += seconds
        for jobs in self.jobs.values():
            jobs.advance(seconds)

    def drain(self, name: str) -> None:
        """Give the worker no new work."""
        self.scheduler.devices[name].is_draining = True
        if name in self.queues:
            self.scheduler.drain(self.worker(name))

    def assign_tasks(self) -> None:
        devices = self.scheduler.devices
        for stage, rate in (("encode", self.encode_rate), ("decode", self.decode_rate)):
            tasks = self.scheduler.encoding if stage == "encode" else self.scheduler.decoding
            able = [d for d in devices.values() if stage in d.roles and not d.is_draining]
            for worker_id, queued in tasks.assign(able, self.now):
                assert rate is not None
                self.jobs[worker_id].begin(tasks.stage, queued.cost / rate, self.now)

    def dispatch(self) -> None:
        """Assign tasks, and fill all queues with plans."""
        self.assign_tasks()
        if self.decode_rate is not None:
            self.lead.update(self.decoders)
        for worker in self.scheduler.due(self.now):
            while worker.next_plan_at(self.now) <= self.now and self.plan(worker.worker_id):
                pass

    def tick(self) -> bool:
        """Dispatch work until the first job ends, and let it return.

        Returns False if there is no work.
        """
        self.dispatch()
        while busy := [name for name, jobs in self.jobs.items() if jobs.left]:
            name = min(busy, key=lambda name: self.jobs[name].next_end)
            pause = self.scheduler.timetable.next_at - self.now
            if pause >= self.jobs[name].next_end:
                break
            self._pass_time(pause)
            self.dispatch()
        else:
            return False
        stage = self.jobs[name].first
        if stage == "denoise":
            self.finish_one(name)
        else:
            self.finish_task(name, stage)
        return True

    def run(self, until: float = float("inf")) -> None:
        while self.now < until and self.tick():
            pass

    def run_to(self, session: Session, *cursor: int) -> None:
        """Run until the next step of the session that is not planned is at `cursor`."""
        while session.cursor < cursor:
            assert self.tick(), f"{session.session_id} does not reach {cursor}"
        assert session.cursor == cursor

    def run_to_edge(self, session: Session, chunk: int) -> None:
        """Run until the session can resume at `chunk`."""
        while session.edge_chunk < chunk:
            assert self.tick(), f"{session.session_id} does not reach chunk {chunk}"

    @property
    def live(self) -> list[Session]:
        """Sessions with steps that are not planned yet."""
        sessions = self.scheduler.sessions.values()
        return [item for item in sessions if not (item.status.is_finished or item.is_planned)]

    @property
    def counts(self) -> dict[str, int]:
        """The number of delivered chunks of each session."""
        return {name: len(times) for name, times in self.delivered.items()}

    def steps(self, name: str) -> list[ScheduledStep]:
        """Return the finished steps of a session."""
        return [step for _, step in self.done if step.session_id == name]

    def service(self, prefix: str) -> float:
        """Return the FLOPs spent on the sessions whose names begin with `prefix`."""
        probe = make_session(make_request("probe"))
        return sum(
            probe.cost.steps[step.cursor.stage]
            for _, step in self.done
            if step.session_id.startswith(prefix)
        )

"""The encode stage: has workers encode the prompts and references of sessions."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple
from weakref import WeakValueDictionary

from helios_serve.core.cost import encode_cost
from helios_serve.core.device import Device
from helios_serve.core.queued_task import QueuedTask
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.events import PromptSwitched
from helios_serve.engine.loop.worker_handle import WorkerHandle
from helios_serve.messages import EncodedPrompt, EncodeTask, InputsEncoded
from helios_serve.video_request import VideoRequest


class AssignedEncode(NamedTuple):
    """An encode task for a worker."""

    worker_id: str
    task: EncodeTask


class EncodeStage:
    """Has workers encode the inputs that sessions lack, and passes the results to them."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue = scheduler.encoding
        self._prompts: WeakValueDictionary[tuple[str, int], EncodedPrompt] = WeakValueDictionary()
        """Encoded prompts in use, which sessions with the same prompt share."""

    def request(
        self, session: Session, texts: Sequence[str], seed_from: VideoRequest | None = None
    ) -> Iterator[PromptSwitched]:
        """Have prompts, and the reference of `seed_from`, encoded unless that is already done.

        Yields the prompt switches that can be applied at once.
        """
        limit = session.params.max_sequence_length
        known = {text: self._prompts.get((text, limit)) for text in texts}
        for prompt in known.values():
            if prompt is not None:
                session.prompts.learn(prompt)
        unknown = tuple(text for text, prompt in known.items() if prompt is None)
        if unknown or seed_from is not None:
            task = EncodeTask(session.session_id, unknown, limit, seed_from)
            due = session.clock.deadline(session.cursor.chunk, self.scheduler.config.start_buffer)
            self.queue.put(QueuedTask(task, session, encode_cost(len(unknown), seed_from), due))
        else:
            yield from self._proceed(session)

    def assign(self, devices: Iterable[Device], now: float) -> Iterator[AssignedEncode]:
        """Yield a task for each of `devices` that has none."""
        for worker_id, queued in self.queue.assign(devices, now):
            yield AssignedEncode(worker_id, queued.task)

    def finish(
        self, worker: WorkerHandle, now: float, event: InputsEncoded
    ) -> QueuedTask[EncodeTask]:
        """Return the task that the worker has finished."""
        return self.queue.finish(worker.device, now, event.seconds)

    def requeue_lost(self, worker: WorkerHandle, now: float, *, was_alone: bool) -> Iterator[str]:
        """Queue the task of a dead worker again. Yields its session id if the task is given up."""
        for lost in self.queue.lose(worker.device, now):
            if self.live_session(lost.task.session_id) is not None:
                given_up = self.queue.requeue(lost, was_alone=was_alone)
                yield from () if given_up is None else (given_up,)

    def live_session(self, session_id: str) -> Session | None:
        """Return the session, or None if it is finished or unknown."""
        session = self.scheduler.sessions.get(session_id)
        return None if session is None or session.status.is_finished else session

    def is_required(self, task: EncodeTask, session: Session) -> bool:
        """Return whether the session cannot continue without the result of `task`."""
        return task.seed_from is not None or not {*task.prompts}.isdisjoint(session.prompts.missing)

    def receive(
        self, session: Session, task: EncodeTask, event: InputsEncoded
    ) -> Iterator[PromptSwitched]:
        """Handle the result of a task, or the failure of one that is not required.

        Yields the prompt switches that are now applied or dropped.
        """
        if event.error is not None:
            for text in session.prompts.drop_switches(task.prompts):
                yield PromptSwitched(event.session_id, text, None, session.request.without_media())
        for prompt in event.prompts:
            self._prompts[prompt.prompt, task.max_sequence_length] = prompt
            session.prompts.learn(prompt)
        if event.snapshot is not None:
            session.seed(event.snapshot)
        yield from self._proceed(session)

    def _proceed(self, session: Session) -> Iterator[PromptSwitched]:
        """Apply the prompt switches whose prompts are encoded, and let the session be placed."""
        for prompt, switch in session.apply_switches():
            request = session.request.without_media()
            yield PromptSwitched(session.session_id, prompt, switch, request)
        self.scheduler.inputs_arrived(session.session_id)

"""What sessions need before their first chunk: prompts to be read, references to be encoded."""

from collections.abc import Iterator, Sequence
from weakref import WeakValueDictionary

from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import Session
from helios_serve.engine.loop.events import PromptSwitched
from helios_serve.engine.loop.task_queue import TaskQueue
from helios_serve.messages import EncodedPrompt, EncodeTask, InputsEncoded
from helios_serve.video_request import VideoRequest


class EncodeStage:
    """Asks workers for what sessions miss, and tells the scheduler when it has come."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.queue: TaskQueue[EncodeTask] = TaskQueue()
        self._prompts: WeakValueDictionary[tuple[str, int], EncodedPrompt] = WeakValueDictionary()
        """Prompts that some session uses: another one need not have them read again."""

    def request(
        self, session: Session, texts: Sequence[str], seed_from: VideoRequest | None = None
    ) -> Iterator[PromptSwitched]:
        """Have prompts read, and the reference of `seed_from` encoded; goes on if all is there."""
        limit = session.request.params.max_sequence_length
        known = {text: self._prompts.get((text, limit)) for text in texts}
        for prompt in known.values():
            if prompt is not None:
                session.learn(prompt)
        unknown = tuple(text for text, prompt in known.items() if prompt is None)
        if unknown or seed_from is not None:
            task = EncodeTask(session.session_id, unknown, limit, seed_from)
            self.queue.put(task, is_urgent=session.is_priority)
        else:
            yield from self._proceed(session)

    def is_required(self, task: EncodeTask, session: Session) -> bool:
        """Whether the session cannot be made without what `task` was to bring."""
        return task.seed_from is not None or not {*task.prompts}.isdisjoint(session.missing_prompts)

    def receive(
        self, session: Session, task: EncodeTask, event: InputsEncoded
    ) -> Iterator[PromptSwitched]:
        """A task for the session is done, or has failed and was not vital."""
        for text in session.drop_switches(task.prompts) if event.error is not None else ():
            yield PromptSwitched(event.session_id, text, None, session.request.without_media())
        for prompt in event.prompts:
            self._prompts[prompt.prompt, task.max_sequence_length] = prompt
            session.learn(prompt)
        if event.snapshot is not None:
            session.seed(event.snapshot)
        yield from self._proceed(session)

    def _proceed(self, session: Session) -> Iterator[PromptSwitched]:
        """What the session waited for may be there."""
        for prompt, switch in session.apply_switches():
            request = session.request.without_media()
            yield PromptSwitched(session.session_id, prompt, switch, request)
        self.scheduler.inputs_arrived(session.session_id)

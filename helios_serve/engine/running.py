"""A request that the asynchronous engine has accepted and that is not over."""

import asyncio
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from helios_serve.engine.feed import Feed
from helios_serve.engine.thread import EngineThread
from helios_serve.errors import (
    EngineDeadError,
    HeliosError,
    InvalidRequestError,
    RequestFailedError,
)
from helios_serve.model_config import num_chunks
from helios_serve.sampling_params import PromptSwitch, VideoRequest

NO_CHUNK_LEFT = "the video has no chunk left for another prompt"
LEAD = "its reader is behind"


class AwaitedSwitch(NamedTuple):
    """Somebody waits to hear at which chunk the video turns to `prompt`."""

    prompt: str
    answer: "asyncio.Future[PromptSwitch]"


class Running:
    """Who makes the video, who reads it, what holds it up, and who waits for a prompt switch."""

    def __init__(self, request: VideoRequest, thread: EngineThread, feed: Feed) -> None:
        self.request_id = request.request_id
        self.model = request.model
        self.num_chunks = num_chunks(request.params.num_frames)
        self.max_lead = request.max_lead_chunks
        self.thread = thread
        self.feed = feed
        feed.on_read = self._on_read
        self._begun = feed.next_chunk
        self._holds: set[str] = set()
        self._switches: list[AwaitedSwitch] = []

    @property
    def is_made(self) -> bool:
        """Whether all chunks are there, so that nothing is left but to say so."""
        return self.feed.next_chunk == self.num_chunks

    def hold(self, reason: str) -> "Future[None]":
        """Have no steps taken while there is a reason; raises EngineDeadError."""
        self._holds.add(reason)
        return self.thread.call(lambda core: core.pause(self.request_id))

    def release(self, reason: str) -> "Future[None] | None":
        """Go on if that was the last reason; raises EngineDeadError."""
        if reason not in self._holds:
            return None
        self._holds.remove(reason)
        if self._holds:
            return None
        return self.thread.call(lambda core: core.resume(self.request_id))

    def on_step(self, chunk: int) -> None:
        """A step of `chunk` was taken: hold the video if that is too far ahead of its reader.

        Steps that workers have by then are still taken, so one chunk more than `max_lead` may be
        made where chunks take no more steps than that.
        """
        self.feed.steps_taken += 1
        self._begun = max(self._begun, chunk)
        if self._is_ahead and LEAD not in self._holds:
            with suppress(EngineDeadError):
                self.hold(LEAD)

    def await_switch(self, prompt: str) -> AwaitedSwitch:
        """Its answer raises InvalidRequestError if no chunk is left for the prompt, and
        RequestFailedError if the request ends before that is known."""
        answer: asyncio.Future[PromptSwitch] = asyncio.get_running_loop().create_future()
        self._switches.append(switch := AwaitedSwitch(prompt, answer))
        return switch

    def forget_switch(self, switch: AwaitedSwitch) -> None:
        """Nobody waits for it any more."""
        self._switches = [awaited for awaited in self._switches if awaited is not switch]

    def answer_switch(self, prompt: str, switch: PromptSwitch | None) -> None:
        """Tell the first one who waits for `prompt`; None is no chunk."""
        for awaited in self._switches:
            if awaited.prompt == prompt:
                self.forget_switch(awaited)
                settle(awaited.answer, switch or no_chunk_left())
                return

    def end(self, error: str | None) -> None:
        self.feed.end(error)
        for _, answer in self._switches:
            settle(answer, no_chunk_left() if error is None else RequestFailedError(error))
        self._switches.clear()

    def _on_read(self) -> None:
        """A chunk was read: go on if that was what the video waited for."""
        if not self._is_ahead:
            with suppress(EngineDeadError):
                self.release(LEAD)

    @property
    def _is_ahead(self) -> bool:
        return self.max_lead is not None and self._begun >= self.feed.read_chunk + self.max_lead


def no_chunk_left() -> InvalidRequestError:
    return InvalidRequestError(NO_CHUNK_LEFT, param="prompt")


def settle(answer: "asyncio.Future[PromptSwitch]", outcome: PromptSwitch | HeliosError) -> None:
    if answer.done():  # nobody waits for it any more
        return
    if isinstance(outcome, HeliosError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)

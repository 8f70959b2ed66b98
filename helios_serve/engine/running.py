"""A request that the asynchronous engine has accepted and that is not over."""

import asyncio
from typing import NamedTuple

from helios_serve.engine.feed import Feed
from helios_serve.engine.thread import EngineThread
from helios_serve.errors import InvalidRequestError
from helios_serve.sampling_params import PromptSwitch, VideoRequest

NO_CHUNK_LEFT = "the video has no chunk left for another prompt"


class AwaitedSwitch(NamedTuple):
    """Somebody waits to hear at which chunk the video turns to `prompt`."""

    prompt: str
    answer: "asyncio.Future[PromptSwitch]"


class Running:
    """Who makes the video, who reads it, what holds it up, and who waits for a prompt switch."""

    def __init__(self, request: VideoRequest, thread: EngineThread, feed: Feed) -> None:
        self.max_lead = request.max_lead_chunks
        self.thread = thread
        self.feed = feed
        self.holds: set[str] = set()
        self._switches: list[AwaitedSwitch] = []

    def await_switch(self, prompt: str) -> "asyncio.Future[PromptSwitch]":
        """Raises InvalidRequestError when awaited, if no chunk is left for the prompt."""
        answer: asyncio.Future[PromptSwitch] = asyncio.get_running_loop().create_future()
        self._switches.append(AwaitedSwitch(prompt, answer))
        return answer

    def answer_switch(self, prompt: str, switch: PromptSwitch | None) -> None:
        """Tell the first one who waits for `prompt`; None is no chunk."""
        for index, (awaited, answer) in enumerate(self._switches):
            if awaited == prompt:
                del self._switches[index]
                settle(answer, switch, NO_CHUNK_LEFT)
                return

    def end(self, error: str | None) -> None:
        self.feed.end(error)
        for _, answer in self._switches:
            settle(answer, None, error or NO_CHUNK_LEFT)
        self._switches.clear()


def settle(
    answer: "asyncio.Future[PromptSwitch]", switch: PromptSwitch | None, why_not: str
) -> None:
    if answer.done():  # nobody waits for it any more
        return
    if switch is not None:
        answer.set_result(switch)
    else:
        answer.set_exception(InvalidRequestError(why_not, param="prompt"))

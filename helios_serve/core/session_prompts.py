"""The prompts of one session, and the switches that wait for theirs."""

from collections import deque
from collections.abc import Iterator, Sequence

from helios_serve.messages import EncodedPrompt
from helios_serve.options.sampling import PromptSwitch

PADDING_ROWS = 4
"""Text rows, at most, that stand for a prompt's padding."""


class SessionPrompts:
    """`texts` are shown at some chunk or other; a guided session has a `negative` one as well.

    `encoded` has all prompts that were encoded for the session, by text. `missing` are those still
    to be encoded before its first chunk. `text_rows` is the number of rows of cross-attention keys
    and values that it holds at a time, at most; it counts from when none is missing. `pending` are
    switches whose chunk is not decided, in the order in which they were requested.
    """

    def __init__(self, texts: Sequence[str], negative: str | None) -> None:
        self.encoded: dict[str, EncodedPrompt] = {}
        self.pending: deque[PromptSwitch] = deque()
        self._negative = negative
        self._unsent: list[EncodedPrompt] = []
        self.set_texts(texts)

    def set_texts(self, texts: Sequence[str]) -> None:
        """A switch has changed which prompts are shown."""
        self._texts = tuple(texts)
        self._update()

    def learn(self, prompt: EncodedPrompt) -> None:
        """A prompt was encoded. The session's worker gets it with the next chunk."""
        if prompt.prompt not in self.encoded:
            self._unsent.append(prompt)
        self.encoded[prompt.prompt] = prompt
        self._update()

    def take_unsent(self) -> tuple[EncodedPrompt, ...]:
        """Prompts that were encoded since the last call."""
        unsent, self._unsent = tuple(self._unsent), []
        return unsent

    def take_all(self) -> tuple[EncodedPrompt, ...]:
        """All encoded prompts, for a worker that has none of them."""
        self._unsent.clear()
        return tuple(self.encoded.values())

    def take_switches(self) -> Iterator[PromptSwitch]:
        """Pending switches whose prompts are encoded; each waits for those before it."""
        while self.pending and self.pending[0].prompt in self.encoded:
            yield self.pending.popleft()

    def drop_switches(self, texts: Sequence[str]) -> Iterator[str]:
        """Drop pending switches to prompts that cannot be encoded; yields the prompt of each."""
        for switch in [item for item in self.pending if item.prompt in texts]:
            self.pending.remove(switch)
            yield switch.prompt

    def _update(self) -> None:
        negative = () if self._negative is None else (self._negative,)
        needed = dict.fromkeys((*self._texts, *negative))
        self.missing = tuple(text for text in needed if text not in self.encoded)
        self.text_rows = self._rows(self._texts) + (self._rows(negative) if negative else 0)

    def _rows(self, texts: Sequence[str]) -> int:
        """Rows of the longest of some prompts."""
        known = (self.encoded[text].num_tokens for text in texts if text in self.encoded)
        return max(known, default=0) + PADDING_ROWS

"""An answer while it is generated: where it ends, and which part of its text is final."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from devft_jax.models.generation.options import GenerationOptions


@dataclass(frozen=True)
class Completion:
    """An answer.

    Attributes:
      tokens: the drawn ids, without the end token but with all tokens of a stop text.
      text: their text up to a stop text; None without a tokenizer.
      finish_reason: "eos" (an end token), "stop" (a stop text) or "length" (`max_new_tokens` reached).
    """

    tokens: tuple[int, ...]
    text: str | None
    finish_reason: Literal["eos", "stop", "length"]


class Answer:
    """One answer while it is generated.

    Attributes:
      limit: largest number of its tokens.
      tokens: the tokens so far.
      reason: why it ended; None while it continues.

    Args:
      endings: what ends it.
      limit: largest number of its tokens.
      listen: called with new text once it is final.
    """

    def __init__(self, endings: "Endings", limit: int, listen: Callable[[str], None] | None) -> None:
        self.endings = endings
        self.limit = limit
        self.tokens: list[int] = []
        self.reason: Literal["eos", "stop", "length"] | None = None
        self._listen = listen
        self._reported = 0
        self._cut: int | None = None

    def extend(self, drawn: Sequence[int]) -> None:
        """Add tokens, up to one that ends the answer.

        Args:
          drawn: new tokens, in order.
        """
        endings, before = self.endings, len(self.tokens)
        for token in drawn:
            if token in endings.eos or token in endings.stop_ids:
                self.reason = "eos" if token in endings.eos else "stop"
                break
            self.tokens.append(token)
            if len(self.tokens) == self.limit:
                self.reason = "length"
                break
        if endings.stop and endings.found(endings.text(self.tokens)) is not None:
            self._cut_at_stop(before)
        if self._listen is not None:
            text = self._text()
            certain = len(text) if self.reason else endings.certain(text)
            if certain > self._reported:
                self._listen(text[self._reported : certain])
                self._reported = certain

    def _cut_at_stop(self, before: int) -> None:
        """End the answer at the first token that completes a stop text, however many were drawn at once."""
        for count in range(before + 1, len(self.tokens) + 1):
            place = self.endings.found(self.endings.text(self.tokens[:count]))
            if place is not None:
                del self.tokens[count:]
                self.reason, self._cut = "stop", place
                return

    def _text(self) -> str:
        return self.endings.text(self.tokens)[: self._cut]

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.reason is not None
        text = None if self.endings.tokenizer is None else self._text()
        return Completion(tuple(self.tokens), text, self.reason)


@dataclass(frozen=True)
class Endings:
    """What ends an answer, and how its tokens are decoded.

    Attributes:
      eos: ids of end tokens.
      stop_ids: ids of stop texts that are a single special token, which decoding leaves out of the text.
      stop: the other stop texts.
      tokenizer: a Hugging Face tokenizer, or None.
    """

    eos: frozenset[int]
    stop_ids: frozenset[int]
    stop: tuple[str, ...]
    tokenizer: Any

    @classmethod
    def of(cls, eos_ids: Sequence[int], options: GenerationOptions, tokenizer: Any) -> "Endings":
        """The endings that a caller requests.

        Args:
          eos_ids: tokens that end an answer.
          options: the generation options.
          tokenizer: a Hugging Face tokenizer; None if there is no stop text.
        """
        special = tokenizer.get_added_vocab() if options.stop else {}
        stop_ids = frozenset(special[text] for text in options.stop if text in special)
        stop = tuple(text for text in options.stop if text not in special)
        return cls(frozenset(eos_ids), stop_ids, stop, tokenizer)

    @property
    def ids(self) -> np.ndarray:
        """i32[n], end tokens for the device, padded with -1 to a multiple of 8 to limit the number of shapes."""
        ids = sorted(self.eos | self.stop_ids)
        return np.array([*ids, *[-1] * (8 - len(ids) % 8)], np.int32)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special tokens.

        Args:
          tokens: ids.
        """
        return self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def found(self, text: str) -> int | None:
        """Position of the first stop text; None if there is none.

        Args:
          text: text of the answer.
        """
        places = [text.find(stop) for stop in self.stop]
        return min((place for place in places if place >= 0), default=None)

    def certain(self, text: str) -> int:
        """Length of the text that further tokens cannot change: without an incomplete character or the beginning of a stop
        text.

        Args:
          text: text of the answer.
        """
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
        beginnings = [size for stop in self.stop for size in range(1, len(stop)) if text.endswith(stop[:size])]
        return len(text) - max(beginnings, default=0)

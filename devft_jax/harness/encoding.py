"""Texts as token ids, by the rules of lm-evaluation-harness's Hugging Face backend.

The tokenizer's own rule about a leading bos holds for a context and for the context with its continuation alike; the
continuation is what the second has beyond the length of the first. Texts are encoded many at once and each once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ENCODED_AT_ONCE = 1024
"""Texts that are made tokens at once."""


@dataclass(frozen=True)
class TextEncoder:
    """Makes texts token ids.

    Attributes:
      tokenizer: of `transformers`.
      prefix: the token behind which a text without a context is scored.
    """

    tokenizer: Any
    prefix: int

    def encode(self, texts: Iterable[str], special: bool | None = None) -> dict[str, np.ndarray]:
        """Token ids of texts.

        Args:
          texts: any, some of them more than once.
          special: whether the tokenizer's leading tokens are put before each; by default as the tokenizer does it, but not
            where a text begins with the prefix already.

        Returns:
          i32[n] by text.
        """
        start = self.tokenizer.decode([self.prefix]) if special is None else None
        groups: dict[bool, list[str]] = {}
        for text in dict.fromkeys(texts):
            groups.setdefault(not text.startswith(start) if start else special is not False, []).append(text)
        found: dict[str, np.ndarray] = {}
        for flag, members in groups.items():
            for first in range(0, len(members), ENCODED_AT_ONCE):
                some = members[first : first + ENCODED_AT_ONCE]
                ids = self.tokenizer(some, add_special_tokens=flag, return_attention_mask=False, verbose=False)["input_ids"]
                found |= {text: np.array(one, np.int32) for text, one in zip(some, ids, strict=True)}
        return found

    def pairs(self, texts: Sequence[tuple[str, str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Token ids of contexts and continuations.

        Args:
          texts: (context, continuation) each; a context's blanks at its end count as the continuation's, and where nothing
            else is in it, the continuation follows the prefix.

        Yields:
          i32[n] of a context, one token or more, and i32[m] of its continuation.
        """
        cut = [context.rstrip() for context, _ in texts]
        joined = [context + continuation for context, continuation in texts]
        whole = self.encode(text for text, bare in zip(joined, cut, strict=True) if bare)
        alone = self.encode((text for text, bare in zip(joined, cut, strict=True) if not bare), False)
        before = self.encode(bare for bare in cut if bare)
        for text, bare in zip(joined, cut, strict=True):
            if bare:
                yield before[bare], whole[text][len(before[bare]) :]
                continue
            tokens = alone[text]
            prefix = np.array([self.prefix], np.int32)
            yield prefix, tokens[1:] if len(tokens) and tokens[0] == self.prefix else tokens

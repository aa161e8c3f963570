"""Encodes records as token ids, with exact borders between prompts and answers.

With a text template an example is what the tokenizer itself puts before a text (its bos, or nothing), then every prompt and
every `answer + eos` in turn, each tokenised separately, so that the borders where the loss begins are exact and a prompt has
the same ids as in generation. A chat template prints bos and the ends of turns itself; its text is tokenised as a whole if
the tokenizer then keeps the borders, as it does with nearly every template, and in parts if a token would span a border. An
eos is added after the last answer only if the template does not end it with such a token.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, islice, pairwise
from typing import Any, NamedTuple

from devft_jax.data.prompts import Segment, joins_texts, prompt_text, renderer
from devft_jax.data.records import Record


def prompt_tokens(record: Record, tokenizer: Any, template: str) -> list[int]:
    """Token ids of an instruction's prompt, including leading tokens, equal to those that `tokenize` makes.

    Args:
      record: an instruction, or a conversation whose last answer is to be generated.
      tokenizer: a tokenizer of `transformers`.
      template: name of a prompt template other than `auto`.
    """
    if template == "chat" or not _has_answers_before(record):
        return Encoder(tokenizer, lambda record: [], 0, template).prompt(prompt_text(record, template, tokenizer))
    # Its earlier answers end as in training, with an end token each.
    [[whole]] = Encoder(tokenizer, renderer(template, tokenizer), sys.maxsize, template)([record])
    last_given = max(place for place, is_answer in enumerate(whole.flags) if not is_answer)
    return [token for token in whole.tokens[: last_given + 1] if token is not None]


def _has_answers_before(record: Record) -> bool:
    """Whether a record is a conversation with answers before the one that is asked for."""
    return sum(turn.role == "assistant" for turn in record.conversation) > 1


def leading_tokens(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer itself puts before a text: often its bos, or nothing.

    Args:
      tokenizer: a tokenizer of `transformers`.
    """
    bare, whole = (
        tokenizer(["a"], add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"][0]
        for special in (False, True)
    )
    starts = range(len(whole) - len(bare) + 1)
    return next((whole[:start] for start in starts if whole[start : start + len(bare)] == bare), [])


class Encoded(NamedTuple):
    """An encoded example that is not stored yet.

    Attributes:
      tokens: ids; empty if no answer fits.
      flags: whether each token belongs to an answer.
      cut: whether it was cut at the length limit.
      answers: the number of its record's answers after which it ends; 0 for the whole record.
    """

    tokens: list[int]
    flags: list[bool]
    cut: bool
    answers: int = 0


class Encoder:
    """Encodes batches of records as token ids with one flag per token, cut at the length limit.

    Args:
      tokenizer: a tokenizer of `transformers`.
      render: returns the segments of a record.
      max_length: most tokens of an example.
      template: name of a prompt template other than `auto`.
    """

    def __init__(self, tokenizer: Any, render: Callable[[Record], list[Segment]], max_length: int, template: str) -> None:
        self.tokenizer = tokenizer
        self.render = render
        self.max_length = max_length
        self.chats = template == "chat"
        self.joins = joins_texts(template)
        self.lead = [] if self.chats else leading_tokens(tokenizer)
        self.eos = [tokenizer.eos_token_id]
        self.ends = {tokenizer.eos_token_id}
        if self.chats:
            self.ends |= {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}

    def __call__(self, records: Sequence[Record]) -> Iterator[list[Encoded]]:
        """The examples of every record; empty for a record of which no answer fits.

        Args:
          records: a batch of records, tokenised at once.
        """
        passes = [_passes(self.render(record)) for record in records]
        units = [unit for some in passes for segments in some for unit in self._units(segments)]
        ids = chain.from_iterable(self._ids_by_unit(units))
        for some in passes:
            rows = [self._example(segments, list(islice(ids, len(segments)))) for segments in some]
            yield self._numbered(some, rows)

    def _units(self, segments: list[Segment]) -> list[list[Segment]]:
        """The parts that are tokenised as one text: everything, an answer with its prompt, or every single segment."""
        size = len(segments) if self.chats else 2 if self.joins else 1
        return [segments[start : start + size] for start in range(0, len(segments), size)]

    def _ids_by_unit(self, units: list[list[Segment]]) -> list[list[list[int]]]:
        apart = iter(self._ids([segment.text for unit in units for segment in unit]))
        rows = [list(islice(apart, len(unit))) for unit in units]
        return self._joined(units, rows) if self.joins else rows

    def _example(self, segments: list[Segment], row: list[list[int]]) -> Encoded:
        if not self.chats:
            row = [ids + self.eos if segment.is_answer else ids for segment, ids in zip(segments, row, strict=True)]
        elif not row[-1] or row[-1][-1] not in self.ends:
            row[-1] = row[-1] + self.eos
        tokens = [*self.lead, *chain.from_iterable(row)]
        flags = [False] * len(self.lead)
        for segment, ids in zip(segments, row, strict=True):
            flags += [segment.is_answer] * len(ids)
        return self._cut(tokens, flags)

    @staticmethod
    def _numbered(passes: list[list[Segment]], examples: list[Encoded]) -> list[Encoded]:
        """The examples that fit, with the number of answers after which each ends; if others do not fit, the last one says
        so."""
        if len(passes) > 1:
            answers = accumulate(sum(segment.is_answer for segment in segments) for segments in passes)
            examples = [example._replace(answers=count) for example, count in zip(examples, answers, strict=True)]
        fitting = [example for example in examples if example.tokens]
        if fitting and len(fitting) < len(examples):
            fitting[-1] = fitting[-1]._replace(cut=True)
        return fitting

    def prompt(self, text: str) -> list[int]:
        """Ids of a text that comes first and asks for an answer.

        Args:
          text: the text of the prompt.
        """
        return [*self.lead, *self._ids([text])[0]]

    def _cut(self, tokens: list[int], flags: list[bool]) -> Encoded:
        cut = len(tokens) > self.max_length
        # There is nothing to learn after the last answer token.
        length = min(len(tokens), self.max_length)
        while length and not flags[length - 1]:
            length -= 1
        return Encoded(tokens[:length], flags[:length], cut)

    def _joined(self, texts: list[list[Segment]], apart: list[list[list[int]]]) -> list[list[list[int]]]:
        """Ids by segment as in the tokens of the whole text, if token borders match the segments' borders."""
        wholes = self._ids(["".join(segment.text for segment in segments) for segments in texts])
        return [
            ids if [*chain.from_iterable(ids)] == whole else self._split(segments, whole) or ids
            for segments, ids, whole in zip(texts, apart, wholes, strict=True)
        ]

    def _split(self, segments: list[Segment], whole: list[int]) -> list[list[int]] | None:
        # Each text up to a border, tokenised like a prompt, must give the first ids of the whole text.
        beginnings = self._ids([*accumulate(segment.text for segment in segments[:-1])])
        borders = [0, *map(len, beginnings), len(whole)]
        if any(whole[: len(ids)] != ids for ids in beginnings) or borders != sorted(borders):
            return None
        return [whole[start:stop] for start, stop in pairwise(borders)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: lengths are handled here, so the tokenizer need not warn about its own limit.
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]


def _passes(segments: list[Segment]) -> list[list[Segment]]:
    """The segments of each text into which a record was rendered."""
    starts = [0, *(index for index, segment in enumerate(segments) if segment.begins and index), len(segments)]
    return [segments[start:stop] for start, stop in pairwise(starts)]

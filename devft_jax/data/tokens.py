"""Records as token ids: tokenised once, kept flat on disk, found again by content.

Under a text template an example is what the tokenizer itself puts before a text (its bos, or
nothing), then every prompt and every `answer + eos` in turn, each tokenised apart, so that the
borders where the loss begins are exact and a prompt has the same ids as when the model generates
from it. A chat template prints bos and the ends of turns itself; its text is tokenised as a whole
where the tokenizer then keeps the borders, as it does with nearly every template, and apart where a
token would reach across one. An eos follows the last answer only if the template ends it with no
token of that kind.

A record is one example, but for a conversation that a chat template words anew at a later turn: each
text of it is an example, and every answer is in exactly one. Whatever tells records apart (what is
held out, who has what) keeps such examples together.

All examples lie end to end in one array with a flag a token beside it, five bytes a token, in a
store that is mapped into memory (`devft_jax.data.store`): neither the texts nor the ids are ever in
memory as a whole. The store's name is a hash of all that decides the ids: the records, the template,
the tokenizer's own content, the length limit and this module's version. A tokenizer that does not
show its content is not looked up again: its store lasts as long as the process.
"""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, islice, pairwise, takewhile
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from devft_jax.data.chat import CHAT_DATE
from devft_jax.data.prompts import Segment, TextTemplate, find_template, joins_texts, prompt_text, renderer, tokenizer_name
from devft_jax.data.records import Record
from devft_jax.data.store import StoreWriter, read_store
from devft_jax.errors import InputError, RunError
from devft_jax.files import cache_folder, checked_path

OVERLONG = ("drop", "error")

# Raise it with every change of what the same records become.
_VERSION = 3

# Records tokenised at once: enough to keep a fast tokenizer's threads busy, few enough that the
# Python lists it returns stay small.
_RECORDS_PER_CALL = 1024

# Examples whose inner answers are looked at for what ends them.
_LOOKED_INTO = 1000

_DTYPES = {
    "tokens": np.dtype("<i4"),
    "is_answer": np.dtype(bool),
    "starts": np.dtype("<i8"),
    "lengths": np.dtype("<i8"),
    "prompt_lengths": np.dtype("<i4"),
    "record_index": np.dtype("<i8"),
    "answers": np.dtype("<i4"),
    "category_codes": np.dtype("<i4"),
    "truncated": np.dtype(bool),
}


class RecordStream(Protocol):
    """Records that can be counted, and iterated as often as needed: a list, a `Source`, `Records`."""

    def __len__(self) -> int:
        """Number of records."""

    def __iter__(self) -> Iterator[Record]:
        """A pass over them, from the start."""


@dataclass(frozen=True, eq=False)
class Examples:
    """N tokenised examples of T_n tokens each, in one array that other examples may share.

    Attributes:
      tokens: i32[at least sum of T_n].
      is_answer: bool, like `tokens`: whether the assistant says the token, so that the loss covers it.
      starts: i64[N]; example n is `tokens[starts[n]:starts[n] + lengths[n]]`.
      lengths: i64[N], tokens of each example.
      prompt_lengths: i32[N], tokens before the first of an answer, those that lead the example included.
      record_index: i64[N], ascending, which of the tokenised records each example came from; several of one follow each
        other.
      answers: i32[N], with how many of its record's answers the example ends; 0 for all of the record.
      category_codes: i32[N], index into `category_names`; -1 for a record without category.
      category_names: the categories of all records, sorted, also those of records that were dropped.
      truncated: bool[N], whether the example was cut at the length limit.
    """

    tokens: np.ndarray
    is_answer: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray
    record_index: np.ndarray
    answers: np.ndarray
    category_codes: np.ndarray
    category_names: tuple[str, ...]
    truncated: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.lengths)

    def row(self, n: int) -> np.ndarray:
        """i32[T_n], the tokens of one example.

        Args:
          n: number of the example.
        """
        return self.tokens[self.starts[n] : self.starts[n] + self.lengths[n]]

    def take(self, index: np.ndarray) -> "Examples":
        """The examples at `index` i64[M], in that order; they share the tokens with these.

        Args:
          index: i64[M], numbers of examples.
        """
        return replace(
            self,
            starts=self.starts[index],
            lengths=self.lengths[index],
            prompt_lengths=self.prompt_lengths[index],
            record_index=self.record_index[index],
            answers=self.answers[index],
            category_codes=self.category_codes[index],
            truncated=self.truncated[index],
        )

    @property
    def owners(self) -> np.ndarray:
        """i64[N], ascending, the number of each example's record among those that have examples."""
        return np.cumsum(np.diff(self.record_index, prepend=self.record_index[:1]) != 0)


def tokenize(
    records: RecordStream,
    tokenizer: Any,
    *,
    template: str = "alpaca",
    max_length: int = 512,
    overlong: str = "drop",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Examples:
    """Tokenise records, or find what an earlier call made of the same ones.

    An example that runs past the limit is cut there: its last answer then has no end, or later turns
    are missing. One whose first answer does not begin within the limit teaches nothing: records with
    no other are dropped with one warning, or refused.

    Args:
      records: what to tokenise; at least one. They are read twice, or three times for a warning.
      tokenizer: of `transformers`. It must have an eos token; an example begins as a text of its own does.
      template: name of a prompt template of `devft_jax.data.prompts`, but not `auto`.
      max_length: most tokens of an example, those that lead and end it included.
      overlong: "drop" or "error", for prompts that leave no room.
      cache_dir: folder of the cache; by default that of `devft_jax.files.cache_folder`. Only fast
        tokenizers are cached: only they show their content.

    Raises:
      InputError: an unusable option or tokenizer, an overlong prompt under "error", no example.
      RunError: the token ids cannot be stored, or the data changed between two readings.
    """
    if overlong not in OVERLONG:
        raise InputError(f"overlong {overlong!r} is unknown; choose from {', '.join(OVERLONG)}.")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer {tokenizer_name(tokenizer)!r} has no eos token, so completions could not end; "
            "set eos_token in its tokenizer_config.json."
        )
    render = renderer(template, tokenizer)
    survey = _Survey()
    for record in records:
        survey.add(record)
    encode = _Encoder(tokenizer, render, max_length, template)
    path = _store_path(survey, tokenizer, template, max_length, cache_dir)
    found = read_store(path, _DTYPES) if path else None
    arrays, names = found or _fill_store(path, records, survey, encode)
    examples = Examples(**arrays, category_names=tuple(names))
    _report_overlong(examples, records, max_length, overlong)
    if survey.silent:
        warnings.warn(
            f"{survey.silent:,} of {len(records):,} records have an empty answer, which teaches the model to say nothing; "
            f"the first is {survey.first_silent}.",
            stacklevel=2,
        )
    return examples


def prompt_tokens(record: Record, tokenizer: Any, template: str) -> list[int]:
    """Token ids of an instruction's prompt, as `tokenize` makes them, those that lead a text included.

    Args:
      record: an instruction, or a conversation whose last answer is asked for.
      tokenizer: of `transformers`.
      template: name of a prompt template, but not `auto`.
    """
    encode = _Encoder(tokenizer, lambda record: [], 0, template)
    return encode.prompt(prompt_text(record, template, tokenizer))


def leading_tokens(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer puts before a text by its own rule: often its bos, or nothing.

    Args:
      tokenizer: of `transformers`.
    """
    bare, whole = (
        tokenizer(["a"], add_special_tokens=special, return_attention_mask=False, verbose=False)["input_ids"][0]
        for special in (False, True)
    )
    starts = range(len(whole) - len(bare) + 1)
    return next((whole[:start] for start in starts if whole[start : start + len(bare)] == bare), [])


def special_borders(
    examples: Examples, tokenizer: Any, template: str, max_length: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The special tokens that lead the examples, in order, and those in which their answers end, unless they were cut.

    Args:
      examples: made by `tokenize`.
      tokenizer: of `transformers`.
      template: name of a prompt template, but not `auto`.
      max_length: most tokens of an example.
    """
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    lead = leading_tokens(tokenizer)
    if template == "chat":
        lead = list(takewhile(special.__contains__, examples.row(0)[: examples.prompt_lengths[0]].tolist()))
    # One that is shorter than the limit lacks later turns and not its end.
    whole = ~examples.truncated | (examples.lengths < max_length)
    last = {*examples.tokens[examples.starts[whole] + examples.lengths[whole] - 1].tolist()}
    # Conversations that were cut have answers that ended before; a few show how.
    for index in range(min(len(examples), _LOOKED_INTO)):
        flags = examples.is_answer[examples.starts[index] :][: examples.lengths[index]]
        last |= {*examples.row(index)[:-1][flags[:-1] & ~flags[1:]].tolist()}
    ends = [token for token in sorted(last) if token in special]
    return tuple(tokenizer.convert_ids_to_tokens(lead)), tuple(tokenizer.convert_ids_to_tokens(ends))


class _Survey:
    """What one pass over the records finds: their content's hash, the categories that occur and empty answers."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=20)
        self.categories: set[str] = set()
        self.silent = 0
        self.first_silent = ""

    def add(self, record: Record) -> None:
        turns = [[turn.role, turn.content] for turn in record.conversation]
        content = [record.instruction, record.input, record.output, record.category, turns]
        self.digest.update(json.dumps(content).encode())
        if record.category is not None:
            self.categories.add(record.category)
        if not record.output.strip():
            self.silent += 1
            self.first_silent = self.first_silent or record.origin


class _Example(NamedTuple):
    """An example on its way into the store."""

    tokens: list[int]
    """Empty where no answer fits."""
    flags: list[bool]
    """Whether each token is an answer's."""
    cut: bool
    answers: int = 0


def _passes(segments: list[Segment]) -> list[list[Segment]]:
    """The segments of each text that a record became."""
    starts = [0, *(index for index, segment in enumerate(segments) if segment.begins and index), len(segments)]
    return [segments[start:stop] for start, stop in pairwise(starts)]


class _Encoder:
    """Batches of records to token ids and a flag for each, cut at the length limit."""

    def __init__(self, tokenizer: Any, render: Callable[[Record], list[Segment]], max_length: int, template: str):
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

    def __call__(self, records: Sequence[Record]) -> Iterator[list[_Example]]:
        """The examples of every record: none where no answer fits."""
        passes = [_passes(self.render(record)) for record in records]
        units = [unit for some in passes for segments in some for unit in self._units(segments)]
        ids = chain.from_iterable(self._ids_by_unit(units))
        for some in passes:
            rows = [self._example(segments, list(islice(ids, len(segments)))) for segments in some]
            yield self._numbered(some, rows)

    def _units(self, segments: list[Segment]) -> list[list[Segment]]:
        """What is tokenised as one text: all, an answer with its prompt, or every segment by itself."""
        size = len(segments) if self.chats else 2 if self.joins else 1
        return [segments[start : start + size] for start in range(0, len(segments), size)]

    def _ids_by_unit(self, units: list[list[Segment]]) -> list[list[list[int]]]:
        apart = iter(self._ids([segment.text for unit in units for segment in unit]))
        rows = [list(islice(apart, len(unit))) for unit in units]
        return self._joined(units, rows) if self.joins else rows

    def _example(self, segments: list[Segment], row: list[list[int]]) -> _Example:
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
    def _numbered(passes: list[list[Segment]], examples: list[_Example]) -> list[_Example]:
        """The examples that fit, with the number of answers that each ends with; the last says that others do not."""
        if len(passes) > 1:
            answers = accumulate(sum(segment.is_answer for segment in segments) for segments in passes)
            examples = [example._replace(answers=count) for example, count in zip(examples, answers, strict=True)]
        fitting = [example for example in examples if example.tokens]
        if fitting and len(fitting) < len(examples):
            fitting[-1] = fitting[-1]._replace(cut=True)
        return fitting

    def prompt(self, text: str) -> list[int]:
        """Ids of text that comes first and asks for an answer."""
        return [*self.lead, *self._ids([text])[0]]

    def _cut(self, tokens: list[int], flags: list[bool]) -> _Example:
        cut = len(tokens) > self.max_length
        # After the last answer token there is nothing to learn.
        length = min(len(tokens), self.max_length)
        while length and not flags[length - 1]:
            length -= 1
        return _Example(tokens[:length], flags[:length], cut)

    def _joined(self, texts: list[list[Segment]], apart: list[list[list[int]]]) -> list[list[list[int]]]:
        """Ids by segment as in the tokens of the whole text, if it has a border between tokens where segments have."""
        wholes = self._ids(["".join(segment.text for segment in segments) for segments in texts])
        return [
            ids if [*chain.from_iterable(ids)] == whole else self._split(segments, whole) or ids
            for segments, ids, whole in zip(texts, apart, wholes, strict=True)
        ]

    def _split(self, segments: list[Segment], whole: list[int]) -> list[list[int]] | None:
        # Each text up to a border, tokenised like a prompt, must give the ids that the whole begins with.
        begun = self._ids([*accumulate(segment.text for segment in segments[:-1])])
        borders = [0, *map(len, begun), len(whole)]
        if any(whole[: len(ids)] != ids for ids in begun) or borders != sorted(borders):
            return None
        return [whole[start:stop] for start, stop in pairwise(borders)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        # verbose=False: lengths are dealt with here, the tokenizer need not warn about its own limit.
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return encoded["input_ids"]


def _fill_store(
    path: Path | None, records: RecordStream, survey: _Survey, encode: _Encoder
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tokenise into the store at `path`, or into one that nobody finds again where that cannot be written."""
    try:
        return _write_store(path, records, survey, encode)
    except OSError as error:
        reason = error.strerror or str(error)
        if path is None:
            raise RunError(f"the token ids cannot be stored ({reason}); free space in the temporary folder.") from error
        warnings.warn(
            f"the token cache {path.parent} cannot be written ({reason}), so the data is tokenised anew every time; "
            "name a writable cache_dir or DEVFT_CACHE.",
            stacklevel=4,
        )
    return _fill_store(None, records, survey, encode)


def _write_store(
    path: Path | None, records: RecordStream, survey: _Survey, encode: _Encoder
) -> tuple[dict[str, np.ndarray], list[str]]:
    names = sorted(survey.categories)
    code_of = {None: -1} | {name: code for code, name in enumerate(names)}
    again = _Survey()
    start = first = 0
    with StoreWriter(path, _DTYPES) as store:
        stream = iter(records)
        while some := list(islice(stream, _RECORDS_PER_CALL)):
            for record in some:
                again.add(record)
            found = [(index, example) for index, examples in enumerate(encode(some)) for example in examples]
            records_of, kept = [index for index, _ in found], [example for _, example in found]
            lengths = np.array([len(example.tokens) for example in kept], np.int64)
            store.append(
                tokens=np.fromiter(chain.from_iterable(example.tokens for example in kept), np.int32),
                is_answer=np.fromiter(chain.from_iterable(example.flags for example in kept), bool),
                starts=start + np.cumsum(lengths) - lengths,
                lengths=lengths,
                prompt_lengths=np.array([example.flags.index(True) for example in kept], np.int32),
                record_index=first + np.array(records_of, np.int64),
                answers=np.array([example.answers for example in kept], np.int32),
                category_codes=np.array([code_of.get(some[index].category, -1) for index in records_of], np.int32),
                truncated=np.array([example.cut for example in kept], bool),
            )
            start += int(lengths.sum())
            first += len(some)
        if again.digest.digest() != survey.digest.digest():
            raise RunError("the data has changed while it was read; start again once its files are complete.")
        return store.publish(names)


def _report_overlong(examples: Examples, records: RecordStream, max_length: int, overlong: str) -> None:
    kept = np.unique(examples.record_index)
    dropped = len(records) - len(kept)
    if not dropped:
        return
    # The first position where the ascending index has a gap.
    gaps = np.flatnonzero(kept != np.arange(len(kept)))
    first = next(islice(records, int(gaps[0]) if len(gaps) else len(kept), None)).origin
    finding = (
        f"{dropped} of {len(records)} prompts leave no room for a completion within max_length "
        f"{max_length}, the first is {first}"
    )
    if overlong == "error" or not len(examples):
        remedy = "or drop them with overlong='drop'" if len(examples) else "or shorten the prompts"
        raise InputError(f"{finding}; raise max_length, {remedy}.")
    warnings.warn(f"{finding}; they are dropped, raise max_length to keep them.", stacklevel=3)


def _store_path(
    survey: _Survey, tokenizer: Any, template: str, max_length: int, cache_dir: str | os.PathLike[str] | None
) -> Path | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    # What an earlier call left set, not what the tokenizer is.
    content["truncation"] = content["padding"] = None
    special = [leading_tokens(tokenizer), tokenizer.eos_token_id]
    wording = find_template(template)
    if isinstance(wording, TextTemplate):
        worded: Any = dataclasses.asdict(replace(wording, description=""))
    else:
        worded = [tokenizer.get_chat_template(), tokenizer.special_tokens_map, str(CHAT_DATE)]
    key = json.dumps([_VERSION, content, special, max_length, worded, survey.digest.hexdigest()], sort_keys=True)
    folder = cache_folder() if cache_dir is None else checked_path(Path(cache_dir), "cache_dir")
    return folder / "tokens" / hashlib.blake2b(key.encode(), digest_size=20).hexdigest()

"""Tokenises records once; the ids are stored on disk in flat arrays and found again by content.

A record is one example, except a conversation whose earlier turns a chat template words differently at a later turn: each
text of it is an example, and every answer is in exactly one. Steps that divide records (the held-out part, the split over
clients) keep such examples together.

All examples are concatenated in one array, with one flag per token, five bytes per token, in a memory-mapped store
(`devft_jax.data.store`): neither the texts nor the ids are ever in memory as a whole. The store's name is a hash of
everything that determines the ids: the records, the template, the tokenizer's own content, the length limit and this
module's version. For a tokenizer whose content cannot be read the store is not reused: it lasts as long as the process.
"""

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, islice, takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from devft_jax.data.chat import CHAT_DATE
from devft_jax.data.choices import OVERLONG
from devft_jax.data.encoding import Encoder, leading_tokens
from devft_jax.data.examples import Examples
from devft_jax.data.prompts import TextTemplate, find_template, renderer, tokenizer_name
from devft_jax.data.records import Record
from devft_jax.data.store import StoreWriter, read_store
from devft_jax.errors import InputError, RunError
from devft_jax.files import cache_folder, checked_path

# Increase it with every change of the ids that the same records give.
_VERSION = 3

# Records tokenised at once: enough to keep a fast tokenizer's threads busy, few enough that the
# Python lists that it returns stay small.
_RECORDS_PER_CALL = 1024

# Number of examples whose inner answers are inspected for their end tokens.
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


def tokenize(
    records: RecordStream,
    tokenizer: Any,
    *,
    template: str = "alpaca",
    max_length: int = 512,
    overlong: str = "drop",
    cache_dir: str | os.PathLike[str] | None = None,
    note: Callable[[int, int], None] | None = None,
) -> Examples:
    """Tokenise records, or load the result of an earlier call for the same ones.

    An example that exceeds the limit is cut: its last answer then has no end, or later turns are missing. An example whose
    first answer does not begin within the limit teaches nothing: records without any other example are dropped with one
    warning, or refused.

    Args:
      records: the records to tokenise; at least one. They are read twice, or three times for a warning.
      tokenizer: a tokenizer of `transformers`. It must have an eos token; an example begins like any text of the tokenizer.
      template: name of a prompt template of `devft_jax.data.prompts` other than `auto`.
      max_length: most tokens of an example, including those that begin and end it.
      overlong: "drop" or "error", for prompts that leave no space for a completion.
      cache_dir: folder of the cache; by default that of `devft_jax.files.cache_folder`. Only fast
        tokenizers are cached, because only their content can be read.
      note: called with the number of records that have been tokenised and the number of all of them; not called for records
        that are in the cache.

    Raises:
      InputError: an option or the tokenizer is invalid, a prompt is overlong with "error", or there is no example.
      RunError: the token ids cannot be stored, or the data changed between two passes.
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
    encode = Encoder(tokenizer, render, max_length, template)
    path = _store_path(survey, tokenizer, template, max_length, cache_dir)
    found = read_store(path, _DTYPES) if path else None
    arrays, names = found or _fill_store(path, records, survey, encode, note)
    examples = Examples(**arrays, category_names=tuple(names))
    _report_overlong(examples, records, max_length, overlong)
    if survey.silent:
        warnings.warn(
            f"{survey.silent:,} of {len(records):,} records have an empty answer, which teaches the model to say nothing; "
            f"the first is {survey.first_silent}.",
            stacklevel=2,
        )
    return examples


def special_borders(
    examples: Examples, tokenizer: Any, template: str, max_length: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The special tokens that begin the examples, in order, and those that end their answers, unless they were cut.

    Args:
      examples: made by `tokenize`.
      tokenizer: a tokenizer of `transformers`.
      template: name of a prompt template other than `auto`.
      max_length: most tokens of an example.
    """
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    lead = leading_tokens(tokenizer)
    if template == "chat":
        lead = list(takewhile(special.__contains__, examples.row(0)[: examples.prompt_lengths[0]].tolist()))
    # A cut example that is shorter than the limit lacks later turns, not its end.
    whole = ~examples.truncated | (examples.lengths < max_length)
    last = {*examples.tokens[examples.starts[whole] + examples.lengths[whole] - 1].tolist()}
    # Cut conversations have answers that end earlier; a few examples are enough.
    for index in range(min(len(examples), _LOOKED_INTO)):
        flags = examples.is_answer[examples.starts[index] :][: examples.lengths[index]]
        last |= {*examples.row(index)[:-1][flags[:-1] & ~flags[1:]].tolist()}
    ends = [token for token in sorted(last) if token in special]
    return tuple(tokenizer.convert_ids_to_tokens(lead)), tuple(tokenizer.convert_ids_to_tokens(ends))


class _Survey:
    """The results of one pass over the records: their content's hash, the categories that occur and empty answers."""

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


def _fill_store(
    path: Path | None,
    records: RecordStream,
    survey: _Survey,
    encode: Encoder,
    note: Callable[[int, int], None] | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Tokenise into the store at `path`, or into a temporary store if that cannot be written."""
    try:
        return _write_store(path, records, survey, encode, note)
    except OSError as error:
        reason = error.strerror or str(error)
        if path is None:
            raise RunError(f"the token ids cannot be stored ({reason}); free space in the temporary folder.") from error
        warnings.warn(
            f"the token cache {path.parent} cannot be written ({reason}), so the data is tokenised in every run; "
            "name a writable cache_dir or DEVFT_CACHE.",
            stacklevel=4,
        )
    return _fill_store(None, records, survey, encode, note)


def _write_store(
    path: Path | None,
    records: RecordStream,
    survey: _Survey,
    encode: Encoder,
    note: Callable[[int, int], None] | None,
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
            if note is not None:
                note(first, len(records))
        if again.digest.digest() != survey.digest.digest():
            raise RunError("the data has changed while it was read; start again once its files are complete.")
        return store.publish(names)


def _report_overlong(examples: Examples, records: RecordStream, max_length: int, overlong: str) -> None:
    kept = np.unique(examples.record_index)
    dropped = len(records) - len(kept)
    if not dropped:
        return
    # The first gap in the ascending index.
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
    # Settings left by an earlier call are not part of the tokenizer's content.
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

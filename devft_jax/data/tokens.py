"""Records as token ids: tokenised once, kept flat, cached by content.

An example is `bos + prompt | completion + eos`. Prompt and completion are tokenised apart, so that
the boundary where the loss begins is exact and a prompt has the same ids as when the model
generates from it. All examples lie end to end in one array with offsets, four bytes a token: a
batch is one gather, and a cache file is a plain `.npz`.

The cache key is a hash of all that decides the ids: the rendered texts, the tokenizer's own
content, the length limit and this module's version. A file appears under its final name only when
whole; one that cannot be read is made anew.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from devft_jax.data.prompts import render
from devft_jax.data.sources import Record
from devft_jax.errors import InputError

OVERLONG = ("drop", "error")

# Raise it with every change of what the same texts become.
_VERSION = 1

# Records tokenised at once: enough to keep a fast tokenizer's threads busy, few enough that the
# Python lists it returns stay small beside the arrays.
_RECORDS_PER_CALL = 1024


@dataclass(frozen=True, eq=False)
class Examples:
    """N tokenised examples of T_n tokens each, end to end in one array."""

    tokens: np.ndarray
    """i32[sum of T_n]."""
    offsets: np.ndarray
    """i64[N + 1]; example n is `tokens[offsets[n]:offsets[n + 1]]`."""
    prompt_lengths: np.ndarray
    """i32[N], tokens before the completion, bos included."""
    record_index: np.ndarray
    """i64[N], which of the tokenised records each example came from."""
    category_codes: np.ndarray
    """i32[N], index into `category_names`; -1 for a record without category."""
    category_names: tuple[str, ...]
    """The categories of all records, sorted, also those of records that were dropped."""
    truncated: np.ndarray
    """bool[N], whether the completion was cut at the length limit."""

    def __len__(self) -> int:
        """N."""
        return len(self.prompt_lengths)

    @property
    def lengths(self) -> np.ndarray:
        """i64[N], tokens of each example."""
        return np.diff(self.offsets)

    def take(self, index: np.ndarray) -> "Examples":
        """The examples at `index` i64[M], in that order, as examples of their own."""
        lengths = self.lengths[index]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        positions = np.arange(offsets[-1]) + np.repeat(self.offsets[index] - offsets[:-1], lengths)
        return replace(
            self,
            tokens=self.tokens[positions],
            offsets=offsets,
            prompt_lengths=self.prompt_lengths[index],
            record_index=self.record_index[index],
            category_codes=self.category_codes[index],
            truncated=self.truncated[index],
        )


def tokenize(
    records: Sequence[Record],
    tokenizer: Any,
    *,
    template: str = "alpaca",
    max_length: int = 512,
    overlong: str = "drop",
    cache_dir: str | os.PathLike[str] | None = None,
) -> Examples:
    """Tokenise records, or read what an earlier call made of the same ones.

    A completion that runs past the limit is cut there and then has no eos. A prompt that leaves no
    room for a single token of completion teaches nothing: such records are dropped with one
    warning, or refused.

    Args:
      records: what to tokenise; at least one.
      tokenizer: of `transformers`. It must have an eos token; without a bos token none is added.
      template: name of a prompt template of `devft_jax.data.prompts`.
      max_length: most tokens of an example, bos and eos included.
      overlong: "drop" or "error", for prompts that leave no room.
      cache_dir: folder of the cache; by default that of the environment variable `DEVFT_CACHE`,
        else `~/.cache/devft_jax`. Only fast tokenizers are cached: only they show their content.

    Raises:
      InputError: an unusable option or tokenizer, an overlong prompt under "error", no example.
    """
    if overlong not in OVERLONG:
        raise InputError(f"overlong {overlong!r} is unknown; choose from {', '.join(OVERLONG)}.")
    if tokenizer.eos_token_id is None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise InputError(
            f"the tokenizer {name!r} has no eos token, so completions could not end; "
            "set eos_token in its tokenizer_config.json."
        )
    texts = [render(record, template) for record in records]
    path = _cache_path(texts, records, tokenizer, max_length, cache_dir)
    examples = _read_cache(path) if path else None
    if examples is None:
        examples = _tokenize(texts, records, tokenizer, max_length)
        if path:
            _write_cache(path, examples)
    _report_overlong(examples, records, max_length, overlong)
    return examples


def _tokenize(texts: Sequence[tuple[str, str]], records: Sequence[Record], tokenizer: Any, max_length: int) -> Examples:
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [tokenizer.eos_token_id]
    parts: list[np.ndarray] = []
    prompt_lengths, lengths, kept, truncated = [], [], [], []
    for start in range(0, len(texts), _RECORDS_PER_CALL):
        some = texts[start : start + _RECORDS_PER_CALL]
        prompts = _token_ids(tokenizer, [prompt for prompt, _ in some])
        completions = _token_ids(tokenizer, [completion for _, completion in some])
        rows = []
        for index, (prompt, completion) in enumerate(zip(prompts, completions, strict=True), start):
            prompt, completion = bos + prompt, completion + eos
            room = max_length - len(prompt)
            if room < 1:
                continue
            rows.append(prompt + completion[:room])
            prompt_lengths.append(len(prompt))
            lengths.append(len(rows[-1]))
            kept.append(index)
            truncated.append(len(completion) > room)
        parts.append(np.fromiter(chain.from_iterable(rows), np.int32))
    names = sorted({record.category for record in records if record.category is not None})
    code_of = {None: -1} | {name: code for code, name in enumerate(names)}
    return Examples(
        tokens=np.concatenate(parts) if parts else np.zeros(0, np.int32),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        prompt_lengths=np.array(prompt_lengths, np.int32),
        record_index=np.array(kept, np.int64),
        category_codes=np.array([code_of[records[index].category] for index in kept], np.int32),
        category_names=tuple(names),
        truncated=np.array(truncated, bool),
    )


def _token_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    # verbose=False: lengths are dealt with here, the tokenizer need not warn about its own limit.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def _report_overlong(examples: Examples, records: Sequence[Record], max_length: int, overlong: str) -> None:
    dropped = len(records) - len(examples)
    if not dropped:
        return
    is_kept = np.zeros(len(records), bool)
    is_kept[examples.record_index] = True
    first = records[int(np.argmin(is_kept))].origin
    finding = (
        f"{dropped} of {len(records)} prompts leave no room for a completion within max_length "
        f"{max_length}, the first is {first}"
    )
    if overlong == "error" or not len(examples):
        remedy = "or drop them with overlong='drop'" if len(examples) else "or shorten the prompts"
        raise InputError(f"{finding}; raise max_length, {remedy}.")
    warnings.warn(f"{finding}; they are dropped, raise max_length to keep them.", stacklevel=3)


def default_cache_dir() -> Path:
    """`DEVFT_CACHE` of the environment, else `~/.cache/devft_jax`."""
    return Path(os.environ.get("DEVFT_CACHE") or "~/.cache/devft_jax").expanduser()


def _cache_path(
    texts: Sequence[tuple[str, str]],
    records: Sequence[Record],
    tokenizer: Any,
    max_length: int,
    cache_dir: str | os.PathLike[str] | None,
) -> Path | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    # What an earlier call left set, not what the tokenizer is.
    content["truncation"] = content["padding"] = None
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    digest = hashlib.blake2b(digest_size=20)
    digest.update(json.dumps([_VERSION, content, special, max_length], sort_keys=True).encode())
    for text, record in zip(texts, records, strict=True):
        digest.update(json.dumps([*text, record.category]).encode())
    folder = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    return folder / "tokens" / f"{digest.hexdigest()}.npz"


def _read_cache(path: Path) -> Examples | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {field.name: stored[field.name] for field in fields(Examples)}
    except Exception:  # absent, or whatever numpy makes of a damaged file: it is made anew
        return None
    names = tuple(found.pop("category_names").tolist())
    return Examples(category_names=names, **found)


def _write_cache(path: Path, examples: Examples) -> None:
    content: dict[str, Any] = {field.name: getattr(examples, field.name) for field in fields(Examples)}
    content["category_names"] = np.array(examples.category_names, np.str_)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **content)
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
    except OSError as error:
        warnings.warn(
            f"the token cache {path.parent} cannot be written ({error.strerror or error}), so the "
            "data is tokenised anew every time; name a writable cache_dir or DEVFT_CACHE.",
            stacklevel=3,
        )

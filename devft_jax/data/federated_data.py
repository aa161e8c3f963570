"""Federated instruction data: from files, a glob or a name to clients with tokenised examples.

`build_federated_data` does all steps: sources, records, tokens, held-out part, partition. Later code works on numpy arrays:
`Examples` hold the token ids once, a `Client` is a name, a stable id and indices into them, and `batches` turns a draw into
padded rows. Records are read as a stream and token ids are memory-mapped, so that a data set may be larger than memory; only
the records of held-out examples are kept as text.

Splits by topic, length and quantity do not depend on the order of the records, only on their contents and the seed. The
other drawn splits (iid, dirichlet) do, and so do the selections of `data_limit` and `test_fraction`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from devft_jax.data.choices import NATURAL
from devft_jax.data.examples import Examples
from devft_jax.data.folders import held_out_files, only_folder
from devft_jax.data.groups import Groups
from devft_jax.data.microtasks.generate import generate
from devft_jax.data.options import DataOptions, validate_data
from devft_jax.data.prompts import resolve_template
from devft_jax.data.records import Record, Records, Source
from devft_jax.data.sources import load_sources
from devft_jax.data.split import Client, drawn_clients, hold_out, natural_clients, split_groups
from devft_jax.data.tokens import special_borders, tokenize
from devft_jax.errors import InputError
from devft_jax.files import printable

# Seed of the generated public text; built-in data has seed 0.
_PUBLIC_SEED = 1


@dataclass(frozen=True, eq=False)
class FederatedData:
    """The training and test data of a run.

    Attributes:
      train: examples for training.
      clients: every example of `train` belongs to exactly one of them.
      partition: the method used, with auto resolved.
      test: held-out examples, if any.
      template: the template used, with auto resolved.
      begins_with: the special tokens that begin every example, in order.
      ends_with: the special tokens that end answers (each answer ends with one of them).
      notes: automatic decisions that the user should know, one sentence each.
      groups: topics or bins of lengths of `train` that the split used; None for other splits.
    """

    train: Examples
    clients: tuple[Client, ...]
    partition: str
    test: Examples | None
    template: str
    begins_with: tuple[str, ...] = ()
    ends_with: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    groups: Groups | None = None


def build_federated_data(
    options: DataOptions, tokenizer: object, *, seed: int = 0, note: Callable[[int, int], None] | None = None
) -> FederatedData:
    """Read, tokenise, hold out and split the data that the options name.

    Args:
      options: any object with the fields of `DataOptions`.
      tokenizer: a tokenizer of `transformers`.
      seed: non-negative; determines the held-out examples and the split, but not the selection of a limit.
      note: as in `tokenize`.

    Raises:
      InputError: an option or the data is invalid, or a client has no example.
    """
    validate_data(options)
    sources = _load(options.data, options, options.data_limit)
    records = Records(sources)
    method = options.partition
    if method == "auto":
        method = "file" if len(sources) > 1 else "iid"
    _check_categories(records, method, options)
    template = resolve_template(
        options.template, conversational=any(source.conversational for source in sources), tokenizer=tokenizer
    )
    examples = _tokenize(records, tokenizer, template, options, note)
    set_aside = held_out_files(options.data)
    train: Examples = examples
    test: Examples | None = None
    if options.test_fraction:
        train, test = hold_out(examples, options, seed)
    elif options.test_data is not None or set_aside:
        held_out = Records(_load(options.test_data or options.data, options, options.test_limit, held_out=True))
        test = _tokenize(held_out, tokenizer, template, options, note)
    groups: Groups | None = None
    if method in NATURAL:
        train, clients = natural_clients(train, method, sources, options)
    else:
        groups = split_groups(train, records, method, options)
        clients = drawn_clients(train, groups, method, options, seed)
    begins_with, ends_with = special_borders(train, tokenizer, template, options.max_length)
    return FederatedData(
        train=train,
        clients=clients,
        partition=method,
        test=test,
        template=template,
        begins_with=begins_with,
        ends_with=ends_with,
        notes=(*_notes_on_files(options, set_aside), *_notes_on_turns(train)),
        groups=groups,
    )


def _notes_on_files(options: DataOptions, set_aside: Sequence[Path]) -> list[str]:
    """Notes on the files that a folder sets aside."""
    if not set_aside:
        return []
    folder = only_folder(options.data) or Path()
    names = ", ".join(path.relative_to(folder).as_posix() for path in set_aside)
    is_test = options.test_data is None and not options.test_fraction
    done = "held out" if is_test else "neither trained nor tested on"
    return [f"{done} because of the file name: {printable(names)}"]


def _notes_on_turns(train: Examples) -> list[str]:
    """A note on conversations that became several examples because of the chat template."""
    parts = train.record_index[train.answers > 0]
    if not len(parts):
        return []
    return [
        f"{len(np.unique(parts)):,} conversations are trained answer by answer, as {len(parts):,} examples, because the "
        "chat template words earlier turns otherwise once others follow"
    ]


def public_examples(spec: str | None, count: int, tokenizer: object, options: DataOptions) -> Examples:
    """Examples of public text, which is not training data and may be used to inspect a model in advance.

    Args:
      spec: data named like `data`; None for generated microtasks with a seed of their own, none of which is a test record.
      count: largest number of examples.
      tokenizer: a tokenizer of `transformers`.
      options: the run's data options: template, fields and lengths.

    Raises:
      InputError: the data cannot be read.
    """
    if spec is None:
        template = resolve_template(options.template, conversational=False, tokenizer=tokenizer)
        return _tokenize(generate("train", count, seed=_PUBLIC_SEED), tokenizer, template, options)
    try:
        sources = _load(spec, options, count)
    except InputError as error:
        raise InputError(f"probe_data cannot be read: {error}") from error
    return _tokenize_sources(sources, tokenizer, options)


def some_examples(count: int, tokenizer: object, options: DataOptions) -> Examples:
    """A fixed random part of the training data, as one set of examples.

    Args:
      count: largest number of records.
      tokenizer: a tokenizer of `transformers`.
      options: the data options; those of held-out data and of the split are not used.

    Raises:
      InputError: the data cannot be read, or no record has an answer.
    """
    sources = _load(options.data, options, count)
    if all(not record.output.strip() for record in Records(sources)):
        shown = options.data if isinstance(options.data, str) else ", ".join(options.data)
        raise InputError(f"data {printable(shown)} has no answer in any record read; name data with answers.")
    return _tokenize_sources(sources, tokenizer, options)


def pool(data: FederatedData) -> FederatedData:
    """The same data with one client, which holds all examples; its name is pool and its id 0.

    Args:
      data: the data and its split.
    """
    everything = np.sort(np.concatenate([client.indices for client in data.clients]))
    return dataclasses.replace(data, clients=(Client("pool", 0, everything),), partition="pooled")


def _load(spec: str | Sequence[str], options: DataOptions, limit: int | None, *, held_out: bool = False) -> list[Source]:
    return load_sources(spec, fields=options.fields, category_field=options.category_field, limit=limit, held_out=held_out)


def _tokenize(
    records: Sequence[Record] | Records,
    tokenizer: object,
    template: str,
    options: DataOptions,
    note: Callable[[int, int], None] | None = None,
) -> Examples:
    return tokenize(
        records,
        tokenizer,
        template=template,
        max_length=options.max_length,
        overlong=options.overlong,
        cache_dir=options.cache_dir,
        note=note,
    )


def _tokenize_sources(sources: Sequence[Source], tokenizer: object, options: DataOptions) -> Examples:
    conversational = any(source.conversational for source in sources)
    template = resolve_template(options.template, conversational=conversational, tokenizer=tokenizer)
    return _tokenize(Records(sources), tokenizer, template, options)


def _check_categories(records: Records, method: str, options: DataOptions) -> None:
    wanted = options.category_field
    if method not in ("dirichlet", "field") and wanted is None:
        return
    without = next((record for record in records if record.category is None), None)
    if without is None:
        return
    if method in ("dirichlet", "field"):
        field = f"the field {wanted!r}" if wanted else "a category"
        raise InputError(
            f"{without.origin} lacks {field}, which partition {method!r} needs of every record; "
            "name the field with category_field, or use another partition."
        )
    if all(record.category is None for record in records):
        raise InputError(
            f"category_field {wanted!r} occurs in no record of the data; name a field that does, or leave it out."
        )

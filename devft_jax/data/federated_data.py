"""Federated instruction data: from a file, a glob or a name to clients with tokenised examples.

`build_federated_data` composes the room: sources, records, tokens, held-out part, partition. All
that follows works on numpy arrays: `Examples` hold the token ids once, a `Client` is a name, a
stable id and indices into them, and `batches` turns a draw into padded rows. Records are read as a
stream and token ids are mapped from disk, so that a data set may be larger than memory; only the
records of held-out examples are kept as they are.

Splits by topic, length and quantity do not depend on the order of the records, only on their contents and the seed.
The others that are drawn (iid, dirichlet) do, as does what `data_limit` keeps and `test_fraction` holds out.
"""

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np

from devft_jax.data.built_in import is_built_in
from devft_jax.data.examples import Examples
from devft_jax.data.folders import held_out_files, only_folder
from devft_jax.data.groups import Groups, category_groups, content_keys, length_groups
from devft_jax.data.microtasks.generate import generate
from devft_jax.data.partition import METHODS, NATURAL, partition, random_stream
from devft_jax.data.prompts import TEMPLATES, resolve_template
from devft_jax.data.records import Record, Records, Source
from devft_jax.data.sources import check_found, load_sources, source_names
from devft_jax.data.tokens import OVERLONG, special_borders, tokenize
from devft_jax.data.topics import find_topics, require_scikit_learn
from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.options import Need, check_options, execution, option, path
from devft_jax.storage.records import ClientRecord, SplitRecord

# Seed of the generated text that is public; built-in data has seed 0.
_PUBLIC_SEED = 1
# First element of the random stream that holds test examples out.
_HOLD_OUT_STREAM = 4


FIELDS_NAMED = Need(
    lambda config: (
        not all(is_built_in(spec) for spec in (config.data, config.test_data, config.probe_data) if spec is not None)
    ),
    "has no effect on built-in data, whose fields are known",
    "name other --data",
    part="data",
)
HELD_OUT = Need(
    lambda config: has_held_out(config),
    "has no effect without held-out data",
    "give --test-data or --test-fraction",
    part="data",
)
DRAWN_SPLIT = Need(
    lambda config: resolved_partition(config) not in NATURAL,
    lambda config: f"has no effect with the partition {resolved_partition(config)}, which gives its own number of clients",
    "use another --partition, such as iid",
    part="data",
)
NATURAL_SPLIT = Need(
    lambda config: resolved_partition(config) in (*NATURAL, None),
    lambda config: f"is read by field and file splits only and the partition is {resolved_partition(config)}",
    "use --partition field or file",
    part="data",
)
SKEWED = ("dirichlet", "topic", "length", "quantity")
"""Partitions that a concentration skews."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The training and test data, their wording, and how they are split over clients."""

    data: str | tuple[str, ...] = path("microtasks")
    """Training data: a file of JSON, JSONL, CSV, TSV (gzipped or not) or Parquet, a folder, a quoted
    glob, a Hugging Face name (owner/name[/configuration][:split]), or the built-in
    microtasks[:split[:count]]. Records are instructions or conversations (messages, conversations)."""
    test_data: str | None = path(None)
    """Held-out data, named like `data`; by default the files and subfolders of a data folder whose names
    say test, eval, validation, valid, val, dev or held_out, which are never trained on."""
    test_fraction: float = option(0.0, within="[0, 1)", remedy="0.1 holds out a tenth")
    """Share of the training examples, 0 to 1, held out at random instead, where `test_data` is not given."""
    fields: Mapping[str, str] | None = option(None, needs=[FIELDS_NAMED])
    """Field names by role (instruction, input, output, or messages), such as `--fields instruction Question
    output Answer`; by default found from the data."""
    template: str = option("auto", choices=TEMPLATES)
    """Wording of the prompt: alpaca (Stanford's), openfedllm (its form of that), alpaca_short, completion
    for the instruction as it is, chat for the tokenizer's own template, or auto (chat for conversations
    where the tokenizer has one, else alpaca)."""
    max_length: int = option(512, at_least=2, at_most=2**24, remedy="use 2 tokens or more")
    """Most tokens of an example, those that lead and end it included; longer ones are cut there."""
    overlong: str = option("drop", choices=OVERLONG)
    """What a prompt without room for a completion leads to: drop (with a warning) or error."""
    partition: str = option("auto", choices=("auto", *METHODS))
    """Split over clients: iid; dirichlet, topic or length (skewed mixtures of categories, of topics found
    in the texts, or of lengths); quantity (skewed sizes); field or file (one client per value or per
    file); auto is file for several files, else iid."""
    clients: int = option(20, at_least=1, at_most=10**6, needs=[DRAWN_SPLIT])
    """Number of clients; field and file splits give their own."""
    dirichlet_alpha: float = option(0.5, above=0, remedy="0.5 is usual", when={"partition": SKEWED})
    """Concentration of a dirichlet, topic, length or quantity split; smaller is more skewed."""
    partition_groups: int = option(
        10, at_least=2, at_most=10**5, remedy="use 2 or more to skew between", when={"partition": ("topic", "length")}
    )
    """Number of topics of a topic split, or of bins of equally many examples of a length split."""
    min_examples: int = option(0, at_least=0, needs=[NATURAL_SPLIT])
    """Fewest training examples of a client of a field or file split; clients with fewer are left out.
    At 0 none is left out, and a client without any is an error."""
    category_field: str | None = option(None, needs=[FIELDS_NAMED])
    """Field with a record's category, or with its user for a field split, text or number; by default
    `category`, `template` or `task` where present."""
    data_limit: int | None = option(None, at_least=1)
    """Most training records used, a fixed random subset of each file pro rata; by default all."""
    test_limit: int | None = option(None, at_least=1, needs=[HELD_OUT])
    """Most test records, chosen the same way; by default all."""
    cache_dir: str | None = execution(None, path=True)
    """Folder of the token cache; by default $DEVFT_CACHE, else ~/.cache/devft_jax."""


@dataclass(frozen=True, eq=False)
class Client:
    """One holder of data."""

    name: str
    id: int
    """uint32 that other clients do not affect: the number of a drawn part, the CRC-32 of the name of
    a field or file. Two names agree with chance 2^-32 and then only share random streams."""
    indices: np.ndarray
    """i64[n], sorted, the client's examples."""


@dataclass(frozen=True, eq=False)
class FederatedData:
    """All that a run trains and tests on."""

    train: Examples
    clients: tuple[Client, ...]
    """Every example of `train` belongs to exactly one."""
    partition: str
    """The method used, auto resolved."""
    test: Examples | None
    test_records: tuple[Record, ...]
    """The record of each test example, in the same order, for graders that read text."""
    template: str
    """The template used, auto resolved."""
    begins_with: tuple[str, ...] = ()
    """The special tokens that lead every example, in order."""
    ends_with: tuple[str, ...] = ()
    """The special tokens in which answers end, any of them."""
    notes: tuple[str, ...] = ()
    """What was decided on the way and the user should know, a sentence each."""
    groups: Groups | None = None
    """Topics or bins of lengths of `train` that the split was drawn over; None for other splits."""


def validate_data(options: DataOptions) -> None:
    """Raise `InputError` for an option that cannot be used, before anything is read."""
    check_options(options)
    if options.test_data is not None and options.test_fraction:
        raise InputError(
            f"test_data {options.test_data!r} and test_fraction {options.test_fraction} exclude "
            "each other; give one of them."
        )
    if options.partition == "topic":
        require_scikit_learn()


def check_data_found(options: DataOptions) -> None:
    """Raise `InputError` for a local path that is not there, before a model is fetched for the data's sake."""
    for spec in (options.data, options.test_data):
        if spec is not None:
            check_found(spec)


def clients_by_file(options: DataOptions) -> list[str] | None:
    """The names of the clients where each is a file, known without reading any; None where clients come about otherwise.

    Those that `min_examples` will leave out are among them.

    Raises:
      InputError: local files are not there.
    """
    if options.partition not in ("auto", "file"):
        return None
    names = source_names(options.data)
    return names if options.partition == "file" or len(names) > 1 else None


def resolved_partition(options: DataOptions) -> str | None:
    """The method of the split, auto resolved by the names of files; None where the files are not there to be counted."""
    if options.partition != "auto":
        return options.partition
    try:
        return "iid" if clients_by_file(options) is None else "file"
    except InputError:
        return None


def has_held_out(options: DataOptions) -> bool:
    """Whether there is held-out data, as far as options and the names of files tell."""
    return bool(options.test_data is not None or options.test_fraction or held_out_files(options.data))


def build_federated_data(options: DataOptions, tokenizer: object, *, seed: int = 0) -> FederatedData:
    """Read, tokenise, hold out and split the data that the options name.

    Args:
      options: any object with the fields of `DataOptions`.
      tokenizer: of `transformers`.
      seed: non-negative; decides the held-out examples and the split, not what a limit keeps.

    Raises:
      InputError: an unusable option, unreadable data, or a client without an example.
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
    examples = _tokenize(records, tokenizer, template, options)
    set_aside = held_out_files(options.data)
    train: Examples = examples
    test: Examples | None = None
    test_records: tuple[Record, ...] = ()
    if options.test_fraction:
        train, test = _hold_out(examples, options, seed)
        test_records = _records_of(test, records)
    elif options.test_data is not None or set_aside:
        held_out = Records(_load(options.test_data or options.data, options, options.test_limit, held_out=True))
        test = _tokenize(held_out, tokenizer, template, options)
        test_records = _records_of(test, held_out)
    groups: Groups | None = None
    if method in NATURAL:
        train, clients = _natural_clients(train, method, sources, options)
    else:
        groups = _groups(train, records, method, options)
        clients = _drawn_clients(train, groups, method, options, seed)
    begins_with, ends_with = special_borders(train, tokenizer, template, options.max_length)
    return FederatedData(
        train=train,
        clients=clients,
        partition=method,
        test=test,
        test_records=test_records,
        template=template,
        begins_with=begins_with,
        ends_with=ends_with,
        notes=(*_notes_on_files(options, set_aside), *_notes_on_turns(train)),
        groups=groups,
    )


def _notes_on_files(options: DataOptions, set_aside: Sequence[Path]) -> list[str]:
    """What became of the files that a folder sets aside."""
    if not set_aside:
        return []
    folder = only_folder(options.data) or Path()
    names = ", ".join(path.relative_to(folder).as_posix() for path in set_aside)
    is_test = options.test_data is None and not options.test_fraction
    done = "held out" if is_test else "neither trained nor tested on"
    return [f"{done} because of the file name: {printable(names)}"]


def _notes_on_turns(train: Examples) -> list[str]:
    """How many conversations are several examples, because the chat template would have it so."""
    parts = train.record_index[train.answers > 0]
    if not len(parts):
        return []
    return [
        f"{len(np.unique(parts)):,} conversations are trained answer by answer, as {len(parts):,} examples, because the "
        "chat template words earlier turns otherwise once others follow"
    ]


def public_examples(spec: str | None, count: int, tokenizer: object, options: DataOptions) -> Examples:
    """Examples of public text, which is nobody's training data: what a model may be looked at with beforehand.

    Args:
      spec: named like `data`; None for generated microtasks of a seed of their own, none of which is a test record.
      count: at most so many. options: template, fields and lengths of the run.
    """
    if spec is None:
        records: Sequence[Record] | Records = generate("train", count, seed=_PUBLIC_SEED)
        conversational = False
    else:
        try:
            sources = load_sources(spec, fields=options.fields, category_field=options.category_field, limit=count)
        except InputError as error:
            raise InputError(f"probe_data cannot be read: {error}") from error
        records, conversational = Records(sources), any(source.conversational for source in sources)
    template = resolve_template(options.template, conversational=conversational, tokenizer=tokenizer)
    return _tokenize(records, tokenizer, template, options)


def pool(data: FederatedData) -> FederatedData:
    """The same data with one client, which holds the examples of all; its name is pool and its id 0."""
    everything = np.sort(np.concatenate([client.indices for client in data.clients]))
    return dataclasses.replace(data, clients=(Client("pool", 0, everything),), partition="pooled")


def _load(spec: str | Sequence[str], options: DataOptions, limit: int | None, *, held_out: bool = False) -> list[Source]:
    return load_sources(spec, fields=options.fields, category_field=options.category_field, limit=limit, held_out=held_out)


def _records_of(examples: Examples, records: Records) -> tuple[Record, ...]:
    """The record of each example, up to the answer that the example ends with."""
    found = zip(records.at(examples.record_index), examples.answers.tolist(), strict=True)
    return tuple(record.until(answers) if answers else record for record, answers in found)


def _tokenize(records: Sequence[Record] | Records, tokenizer: object, template: str, options: DataOptions) -> Examples:
    return tokenize(
        records,
        tokenizer,
        template=template,
        max_length=options.max_length,
        overlong=options.overlong,
        cache_dir=options.cache_dir,
    )


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


def _hold_out(examples: Examples, options: DataOptions, seed: int) -> tuple[Examples, Examples]:
    """Train and test part, of whole records; the test part has at least one and leaves at least one."""
    owners = examples.owners
    size = int(owners[-1]) + 1
    if size < 2:
        raise InputError(f"test_fraction {options.test_fraction} cannot hold out of one example; use more data.")
    wanted = round(options.test_fraction * size)
    if options.test_limit is not None:
        wanted = min(wanted, options.test_limit)
    count = min(max(wanted, 1), size - 1)
    order = random_stream(_HOLD_OUT_STREAM, seed).permutation(size)
    is_test = np.zeros(size, bool)
    is_test[order[:count]] = True
    return examples.take(np.flatnonzero(~is_test[owners])), examples.take(np.flatnonzero(is_test[owners]))


@dataclass(frozen=True)
class _Texts:
    """The text of each example, read anew on every pass."""

    records: Records
    index: np.ndarray

    def __iter__(self) -> Iterator[str]:
        return (record.text for record in self.records.at(self.index))


def _groups(train: Examples, records: Records, method: str, options: DataOptions) -> Groups | None:
    """What a split by topic or length is drawn over; other splits need nothing beyond the examples."""
    if method == "length":
        return length_groups(train.lengths, options.partition_groups)
    if method == "topic":
        return find_topics(_Texts(records, train.record_index), options.partition_groups)
    return None


def _drawn_clients(
    train: Examples, groups: Groups | None, method: str, options: DataOptions, seed: int
) -> tuple[Client, ...]:
    # What is drawn are records, each by its last example, which holds most of it.
    owners = train.owners
    last = np.flatnonzero(np.diff(owners, append=len(owners)))
    # Splits by iid and dirichlet follow the order of the records, so that those already measured stay as they are.
    keys = None if method in ("iid", "dirichlet") else content_keys(train.take(last))
    parts = partition(
        (groups or category_groups(train)).codes[last],
        method,
        num_clients=options.clients,
        alpha=options.dirichlet_alpha,
        seed=seed,
        keys=keys,
    )
    client_of = np.empty(len(last), np.int64)
    for number, part in enumerate(parts):
        client_of[part] = number
    sizes = np.bincount(client_of[owners], minlength=len(parts))
    found = np.split(np.argsort(client_of[owners], kind="stable"), np.cumsum(sizes)[:-1])
    return tuple(Client(f"client-{number}", number, part) for number, part in enumerate(found))


def _natural_clients(
    train: Examples, method: str, sources: Sequence[Source], options: DataOptions
) -> tuple[Examples, tuple[Client, ...]]:
    """The clients of a field or file split, and the examples of those with enough of them."""
    if method == "file":
        names = [source.name for source in sources]
        codes = np.repeat(np.arange(len(sources)), [len(source) for source in sources])[train.record_index]
    else:
        names, codes = list(train.category_names), train.category_codes
    sizes = np.bincount(codes, minlength=len(names))
    if options.min_examples:
        small = sizes < options.min_examples
        if small.all():
            raise InputError(
                f"min_examples {options.min_examples} leaves no client, since the largest has {sizes.max()}; "
                "lower it or give more data."
            )
        if small.any():
            warnings.warn(
                f"{small.sum():,} of {len(names):,} clients have fewer than {options.min_examples} training examples "
                f"and are left out with their {sizes[small].sum():,} examples (min_examples).",
                stacklevel=3,
            )
            train = train.take(np.flatnonzero(~small[codes]))
            codes = (np.cumsum(~small) - 1)[codes[~small[codes]]]
            names = [name for name, is_small in zip(names, small, strict=True) if not is_small]
    elif not sizes.all():
        raise InputError(
            f"the client {names[int(np.argmin(sizes))]!r} has no training example left after limits, drops and the held-out "
            "part; give it more data, raise max_length or data_limit, or set min_examples to leave small clients out."
        )
    parts = partition(codes, method, num_clients=len(names))
    return train, tuple(
        Client(name, crc32(name.encode("utf-8", "surrogatepass")), part) for name, part in zip(names, parts, strict=True)
    )


# What the groups of a kind are called in the table.
_PLURALS = {"category": "categories", "topic": "topics", "length": "lengths in tokens"}


def _shown_groups(data: FederatedData) -> Groups | None:
    """What a client's examples are counted by: what the split was drawn over, else their categories, if any."""
    if data.groups is not None:
        return data.groups
    # A client of a field split is its category.
    return category_groups(data.train) if data.train.category_names and data.partition != "field" else None


def describe(data: FederatedData, *, max_clients: int = 50) -> str:
    """A table of the split for the terminal: examples, tokens and categories, topics or lengths of each client."""
    groups = _shown_groups(data)
    rows: list[tuple[str, ...]] = [("client", "examples", "tokens", _PLURALS[groups.kind] if groups else "")]
    rows += [_row(printable(client.name), data.train, groups, client.indices) for client in data.clients[:max_clients]]
    if len(data.clients) > max_clients:
        rows.append((f"... and {len(data.clients) - max_clients:,} more", "", "", ""))
    rows.append(_row(f"all {len(data.clients):,} ({data.partition})", data.train, groups, np.arange(len(data.train))))
    if data.test is not None:
        known = category_groups(data.test) if groups and groups.kind == "category" else None
        rows.append(_row("test", data.test, known, np.arange(len(data.test))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        f"{name:<{widths[0]}}  {count:>{widths[1]}}  {tokens:>{widths[2]}}  {shown}".rstrip()
        for name, count, tokens, shown in rows
    ]
    cut = int(data.train.truncated.sum())
    if cut:
        lines.append(f"{cut:,} training completions are cut at the length limit")
    begins = " ".join(data.begins_with) or "no special token"
    ends = " or ".join(data.ends_with) or "no special token"
    lines.append(f"template {data.template}; an example begins with {printable(begins)} and ends in {printable(ends)}")
    lines += data.notes
    return "\n".join(lines)


def _row(name: str, examples: Examples, groups: Groups | None, indices: np.ndarray) -> tuple[str, ...]:
    counts = _counts_by_name(groups, indices) if groups else {}
    common = [f"{printable(group)} {count:,}" for group, count in sorted(counts.items(), key=lambda item: -item[1])]
    if len(common) > 4:
        common[4:] = [f"{len(common) - 4} more"]
    return name, f"{len(indices):,}", f"{int(examples.lengths[indices].sum()):,}", ", ".join(common)


def _counts_by_name(groups: Groups, indices: np.ndarray) -> dict[str, int]:
    """Examples of each group that occurs, in the groups' order."""
    counts = groups.count(indices).tolist()
    return {name: count for name, count in zip(groups.names, counts, strict=True) if count}


def split_record(data: FederatedData) -> SplitRecord:
    """The split as `split.json` holds it: all groups in order, what each client has, and how prompts are worded.

    A client's groups are counts of examples by name, without those it lacks and without examples that have no category.
    """
    groups = _shown_groups(data)
    lengths = data.train.lengths
    clients = [
        ClientRecord(
            name=client.name,
            id=int(client.id),
            examples=len(client.indices),
            tokens=int(lengths[client.indices].sum()),
            groups=_counts_by_name(groups, client.indices) if groups else {},
        )
        for client in data.clients
    ]
    return SplitRecord(
        partition=data.partition,
        template=data.template,
        begins_with=list(data.begins_with),
        ends_with=list(data.ends_with),
        notes=list(data.notes),
        examples=len(data.train),
        tokens=int(lengths.sum()),
        grouped_by=groups.kind if groups else None,
        groups=_counts_by_name(groups, np.arange(len(data.train))) if groups else {},
        clients=clients,
    )

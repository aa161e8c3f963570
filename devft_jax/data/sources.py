"""Records from wherever instruction data lives, in one form and with an address each.

One option names the data: a local file, a folder, a glob, the name of a data set on Hugging Face or
a built-in one. Whatever it names becomes a list of `Source`s, one per file, because in federated
data a file is often a client. The shape of a record is found from its field names (a conversation,
Alpaca, Dolly, prompt/completion, question/answer) or told by the user, and every record keeps its
origin (`path:line`), so that an error anywhere later can say which line of which file it means.

A source is read as a stream, anew on every pass: once to count its records and to learn its fields,
then as often as somebody iterates it. Memory therefore does not grow with the data, except under a
JSON array, which can only be parsed whole.

In a folder, files and subfolders whose names say so are held-out data: see `said_part`. Names that
Hugging Face gives to the parts of one file (`train-00000-of-00002`) are put together again.
Nothing that a data set brings is ever run: files are read as data, and scripts are not looked at.
"""

import glob
import importlib
import logging
import math
import re
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from devft_jax.data.files import SUFFIXES, Row, Scan, read_rows, scan_rows, shown, stem, to_scan
from devft_jax.data.partition import apportion, random_stream
from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable, whole_path

ROLES = ("instruction", "input", "output", "messages")

# Field names in use, by role. The first layout whose fields all occur is taken, else the first
# whose instruction and output occur, since files without inputs often leave that field out.
LAYOUTS: tuple[Mapping[str, str], ...] = (
    {"instruction": "instruction", "input": "input", "output": "output"},  # Alpaca
    {"instruction": "instruction", "input": "context", "output": "response"},  # Dolly
    {"instruction": "instruction", "input": "input", "output": "response"},  # GPTeacher
    {"instruction": "prompt", "output": "completion"},
    {"instruction": "question", "output": "answer"},  # GSM8K
)

# Where conversations are kept; such a field decides before the layouts above, because data sets of
# conversations often repeat the first question in a field of its own.
MESSAGES_FIELDS = ("messages", "conversations", "conversation")

# A conversation's system text that stands beside its turns instead of among them.
SYSTEM_FIELD = "system"

CATEGORY_FIELDS = ("category", "template", "task")

# The two forms of a turn, (speaker, content): OpenAI's and Hugging Face's, and ShareGPT's.
TURN_FIELDS = (("role", "content"), ("from", "value"))

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "model": "assistant",
}

# The words by which `datasets` tells splits apart, and our own "held out"; no other letter may touch them.
_LETTER = r"[^\W\d_]"
_HELD_OUT_WORD = re.compile(
    rf"(?<!{_LETTER})(test|testing|eval|evaluation|validation|valid|val|dev|held[^a-z]?out)(?!{_LETTER})"
)
_TRAINING_WORD = re.compile(rf"(?<!{_LETTER})(train|training)(?!{_LETTER})")

# Hugging Face's names of the parts of one split, such as train-00000-of-00002 and c4-train.00000-of-01024, some with a
# hash behind them; and those of its own conversions to Parquet, which only number the parts in the folder of a split.
_SHARD = re.compile(r"(?P<whole>.+)[-._](?P<index>\d{4,})[-_]of[-_](?P<total>\d{4,})(?:[-._][0-9a-f]{8,64})?", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:.*/)?(?:partial-)?(?:train|validation|test)/\d{4}\.parquet", re.IGNORECASE)

# The folder in which Hugging Face's data sets keep their files.
_DATA_FOLDER = "data"

# What data sets keep beside their data.
_METADATA = ("config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")

# First element of the random stream that picks the records kept under a limit.
_LIMIT_STREAM = 1


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says at once."""

    role: str
    """system, user or assistant."""
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction with its answer, or a conversation.

    Whatever reads only `instruction`, `input` and `output` sees the last exchange of a
    conversation; whatever reads `turns` sees an instruction as a conversation of two turns.
    """

    instruction: str
    input: str
    """Context that the instruction refers to; empty when there is none."""
    output: str
    category: str | None
    """Kind of task, where the data says so: what non-IID splits are made from."""
    origin: str
    """Where the record was read, as `path:number`: a line of JSONL or CSV, a record elsewhere."""
    conversation: tuple[Turn, ...] = ()
    """Every turn of a record that was given as turns; empty for any other."""

    @classmethod
    def of_turns(cls, turns: Sequence[Turn], category: str | None, origin: str) -> "Record":
        """A conversation, which must hold an assistant turn."""
        last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
        asked = next((turn.content for turn in reversed(turns[:last]) if turn.role == "user"), "")
        return cls(asked, "", turns[last].content, category, origin, tuple(turns))

    def until(self, answers: int) -> "Record":
        """The conversation up to the end of so many assistant turns."""
        ends = [index for index, turn in enumerate(self.conversation, 1) if turn.role == "assistant"]
        return Record.of_turns(self.conversation[: ends[answers - 1]], self.category, self.origin)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The record as a conversation; input follows its instruction on a line of its own."""
        if self.conversation:
            return self.conversation
        asked = f"{self.instruction}\n{self.input}" if self.input else self.instruction
        return Turn("user", asked), Turn("assistant", self.output)

    @property
    def text(self) -> str:
        """All that is said, without any template's wording."""
        return "\n".join(turn.content for turn in self.turns)


@dataclass(frozen=True, eq=False)
class Source:
    """The records of one file (or of one split of a named data set), read anew by every iteration."""

    name: str
    """File name without folder and suffix, or the path below the folder that a glob starts from."""
    place: str
    """The path or name it is read from."""
    size: int
    read: Callable[[], Iterator[Record]]
    conversational: bool = False
    """Whether its records are conversations."""

    def __len__(self) -> int:
        """Number of records."""
        return self.size

    def __iter__(self) -> Iterator[Record]:
        """A pass over the records; `InputError` at the first that cannot be used."""
        return self.read()


class Records:
    """The records of several sources, one after another, never all in memory."""

    def __init__(self, sources: Sequence[Source]):
        self.sources = tuple(sources)

    def __len__(self) -> int:
        """Number of records in all sources."""
        return sum(map(len, self.sources))

    def __iter__(self) -> Iterator[Record]:
        """A pass over the records of all sources."""
        return chain.from_iterable(self.sources)

    def at(self, index: np.ndarray) -> Iterator[Record]:
        """The records at ascending positions `index` i64[M], which may repeat, in one pass.

        With the `record_index` of `Examples` it gives the record of every example, in their order:
        what a split by content reads the texts from.
        """
        wanted = iter(np.asarray(index).tolist())
        position = next(wanted, None)
        for number, record in enumerate(self):
            while number == position:
                yield record
                position = next(wanted, None)
            if position is None:
                return


@dataclass(frozen=True)
class BuiltIn:
    """A data set that comes with the package."""

    description: str
    counts: Mapping[str, int]
    """Records generated by default, per split; the first split is the default one."""
    most: Mapping[str, int]
    """Most records that may be asked for, per split."""


# Each is a module of this package with `generate(*, split, count, seed) -> Sequence[Record]`.
BUILT_IN: dict[str, BuiltIn] = {
    "microtasks": BuiltIn(
        "small exactly gradable instructions in many categories, generated",
        {"train": 8000, "test": 800},
        {"train": 75_000, "test": 9_600},
    ),
}


def load_sources(
    spec: str | Sequence[str],
    *,
    fields: Mapping[str, str] | None = None,
    category_field: str | None = None,
    limit: int | None = None,
    held_out: bool = False,
) -> list[Source]:
    """Find and check the data that `spec` names; its records are read when a source is iterated.

    Args:
      spec: one or several of: a file of JSON, JSONL, CSV, TSV (any of them gzipped) or Parquet; a
        folder of such files, those in its subfolders `data` and called after a split included; a
        glob; `name[:split]` of a data set on Hugging Face (with `owner/name/configuration` where it
        has several; split `train` by default); a built-in `name[:split[:count]]`. Files of a folder
        or glob come in natural order, 2 before 10, and shards (`-00000-of-00002`) are one source.
      fields: role (instruction, input, output, or messages for conversations) to field name, for
        records of another shape.
      category_field: field that holds the category; otherwise the first of `category`, `template`
        and `task` that occurs, if any.
      limit: at most this many records in all, a random subset that is the same for every run;
        every source keeps its share.
      held_out: what a folder that is the only spec gives where some of its files are named as
        held-out data: those files instead of the others. Any other spec is taken literally.

    Raises:
      InputError: nothing matches, or a file is unreadable; names the file and line. Iterating a
        source raises it for a record that cannot be used.
    """
    unknown = sorted(set(fields or ()) - set(ROLES))
    if unknown:
        raise InputError(f"fields names an unknown role {unknown[0]!r}; the roles are {', '.join(ROLES)}.")
    specs = (spec,) if isinstance(spec, str) else tuple(spec)
    if not specs:
        raise InputError("data is empty; name a file, a folder, a glob or a data set.")
    if limit is not None and limit < 1:
        raise InputError(f"a limit of {limit} records leaves no data; use 1 or more.")
    part = None if len(specs) > 1 else "held-out" if held_out else "training"
    sources = [load(fields or {}, category_field) for _, load in _planned(specs, part)]
    _check_distinct_names(sources)
    return sources if limit is None else _limited(sources, limit)


def check_found(spec: str | Sequence[str]) -> None:
    """Raise `InputError` where `spec` means local files that are not there; reads nothing, and asks no network."""
    for one in (spec,) if isinstance(spec, str) else spec:
        if one.partition(":")[0] not in BUILT_IN:
            _local_files(one, None)


def named_from_anywhere(spec: str) -> str:
    """Data as it may be stored: local files by their whole path, which holds wherever one stands, else by name."""
    if not spec or spec.partition(":")[0] in BUILT_IN:
        return spec
    path = checked_path(spec, "data")
    return str(whole_path(path)) if path.exists() or glob.has_magic(spec) else spec


def is_built_in(spec: str | Sequence[str]) -> bool:
    """Whether `spec` names nothing but built-in data."""
    return all(one.partition(":")[0] in BUILT_IN for one in ((spec,) if isinstance(spec, str) else spec))


def held_out_files(spec: str | Sequence[str]) -> tuple[Path, ...]:
    """The files that a folder sets aside as held-out data by their names; empty for any other spec."""
    folder = only_folder(spec)
    if folder is None:
        return ()
    training, held_out = _folder_files(folder)
    return tuple(held_out) if training else ()


def only_folder(spec: str | Sequence[str]) -> Path | None:
    """The folder that `spec` means; None where it means anything else or more."""
    one = spec if isinstance(spec, str) else spec[0] if len(spec) == 1 else ""
    if not one or one.partition(":")[0] in BUILT_IN:
        return None
    path = checked_path(one, "data")
    return path if path.is_dir() else None


def said_part(name: str) -> str | None:
    """What a file's or folder's name, without suffix, says that it is for: "training", "held-out" or nothing.

    It says held-out by one of the words test, testing, eval, evaluation, valid, validation, val, dev or held_out that no
    other letter touches (`global_test`, `gpt4-eval`, `dev2`, but not `latest`), in either case, unless it says train or
    training as well.
    """
    name = name.lower()
    if _TRAINING_WORD.search(name):
        return "training"
    return "held-out" if _HELD_OUT_WORD.search(name) else None


# Reads a source, given fields by role and the field of the category.
_Load = Callable[[Mapping[str, str], str | None], Source]


def source_names(spec: str | Sequence[str]) -> list[str]:
    """The names that the sources of training data would have, in order; reads nothing, and asks no network.

    Raises:
      InputError: local files are not there.
    """
    specs = (spec,) if isinstance(spec, str) else tuple(spec)
    return [name for name, _ in _planned(specs, None if len(specs) > 1 else "training")]


def _planned(specs: Sequence[str], part: str | None) -> list[tuple[str, _Load]]:
    """The name of each source and how it is read, in order; shards of one file are one source wherever they are named."""
    found: list[tuple[str, _Load]] = []
    shards: dict[tuple[Path, str], list[_Shard]] = {}
    for spec in specs:
        if spec.partition(":")[0] in BUILT_IN:
            found.append((_built_in_name(spec), partial(_load_built_in, spec)))
            continue
        files = _local_files(spec, part)
        if files is None:
            found.append((spec, partial(_load_hub, spec)))
            continue
        for name, path in files:
            shard = _Shard.of(name, path)
            if shard is None:
                found.append((name, partial(_load_files, name, [path])))
                continue
            others = shards.setdefault((path.parent, shard.whole), [])
            if not others:
                found.append((shard.whole, partial(_load_shards, others)))
            others.append(shard)
    return found


def _built_in_name(spec: str) -> str:
    """`name:split` of a built-in data set."""
    name, *details = spec.split(":")
    return f"{name}:{details[0] if details and details[0] else next(iter(BUILT_IN[name].counts))}"


def _load_built_in(spec: str, fields: Mapping[str, str], category_field: str | None) -> Source:
    name, *details = spec.split(":")
    counts = BUILT_IN[name].counts
    split = details[0] if details and details[0] else next(iter(counts))
    count_text = details[1] if len(details) > 1 else str(counts.get(split, 0))
    if split not in counts or len(details) > 2 or not count_text.isdecimal():
        raise InputError(
            f"data {spec!r} is not understood; write {name}:SPLIT or {name}:SPLIT:COUNT with a "
            f"split out of {', '.join(counts)}."
        )
    most = BUILT_IN[name].most[split]
    # Long counts are not even turned into numbers.
    if len(count_text) > len(str(most)) or int(count_text) > most:
        shown = count_text if len(count_text) <= 20 else f"{count_text[:20]}..."
        raise InputError(f"data '{name}:{split}:{shown}' asks for more than the {most:,} records of that split; lower it.")
    module = importlib.import_module(f"devft_jax.data.{name}.generate")
    records = tuple(module.generate(split=split, count=int(count_text), seed=0))
    if not records:
        raise InputError(f"data {spec!r} asks for no record; use a count of 1 or more.")
    return Source(f"{name}:{split}", spec, len(records), lambda: iter(records))


@dataclass(frozen=True)
class _Shard:
    """A part of a file that was stored in several."""

    whole: str
    """Name of the file without the part."""
    index: int
    total: int | None
    """Number of parts, where the name says it."""
    path: Path

    @classmethod
    def of(cls, name: str, path: Path) -> "_Shard | None":
        """What a file's name below the folder it was found in says; None where it is a file by itself."""
        if found := _SHARD.fullmatch(name):
            return cls(found["whole"], int(found["index"]), int(found["total"]), path)
        if _NUMBERED.fullmatch(path.as_posix()):
            return cls(name.rpartition("/")[0] or path.parent.name, int(stem(path.name)), None, path)
        return None


def _load_shards(shards: Sequence[_Shard], fields: Mapping[str, str], category_field: str | None) -> Source:
    """One source out of the shards of a file; a warning where some are missing."""
    ordered = sorted(shards, key=lambda shard: (shard.total or 0, shard.index))
    name = printable(ordered[0].whole)
    for one, other in pairwise(ordered):
        if (one.index, one.total) == (other.index, other.total):
            raise InputError(
                f"{shown(one.path)} and {shown(other.path)} are both part {one.index} of {name!r}; remove the older one."
            )
        if one.total != other.total:
            raise InputError(
                f"{shown(one.path)} is one of {one.total} parts of {name!r} and {shown(other.path)} one of {other.total}; "
                "remove those of the older set."
            )
    total = ordered[0].total or ordered[-1].index + 1
    missing = total - len(ordered)
    if missing and ordered[-1].index < total:
        first = next(number for number, shard in enumerate([*ordered, None]) if shard is None or shard.index != number)
        warnings.warn(
            f"{name!r} in {shown(ordered[0].path.parent)} lacks {missing:,} of its {total:,} parts, the first is "
            f"{first:05}; only the others are read.",
            stacklevel=4,
        )
    return _load_files(ordered[0].whole, [shard.path for shard in ordered], fields, category_field)


def _load_files(name: str, paths: Sequence[Path], fields: Mapping[str, str], category_field: str | None) -> Source:
    """One source out of a file or out of the shards of one."""
    scans = [scan_rows(path) for path in paths]
    present = {field: None for scan in scans for field in scan.fields}
    place = shown(paths[0])
    reader = _Reader.of(place, list(present), fields, category_field)

    def read() -> Iterator[Record]:
        for path in paths:
            yield from reader.records(shown(path), read_rows(path))

    return Source(name, place, sum(scan.count for scan in scans), read, reader.messages is not None)


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """A package's warnings, such as of every attempt to reach a server, are left out: what comes of them is said once."""
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load_hub(spec: str, fields: Mapping[str, str], category_field: str | None) -> Source:
    """`owner/name[/configuration][:split]` on Hugging Face, by the `datasets` package."""
    import datasets

    name, _, split = spec.partition(":")
    parts = name.split("/")
    repository = "/".join(parts[:2])
    if Path(repository).exists():
        # The package would take it, and a loading script in it, instead of the data set of that name.
        raise InputError(
            f"data {spec!r} does not exist, and {repository!r} is a file or folder here; give its files by path or glob."
        )
    try:
        with _quiet("huggingface_hub"):
            rows = datasets.load_dataset(repository, *parts[2:3], split=split or "train", trust_remote_code=False)
    except Exception as error:  # the package raises a different type for every back end
        reason = printable(str(error).strip().split("\n")[0].rstrip(".")) or type(error).__name__
        raise InputError(
            f"data {spec!r} is no local file or folder, and Hugging Face did not give it "
            f"({reason}); check the name and the connection, or download it and give the file."
        ) from error
    if not len(rows):
        raise InputError(f"data {spec!r} holds no record; choose another split.")
    columns = getattr(rows, "column_names", None)
    scan = Scan(len(rows), tuple(columns)) if columns else to_scan(spec, enumerate(rows, 1))
    reader = _Reader.of(spec, scan.fields, fields, category_field)
    return Source(spec, spec, scan.count, lambda: reader.records(spec, enumerate(rows, 1)), reader.messages is not None)


def _local_files(spec: str, part: str | None) -> list[tuple[str, Path]] | None:
    """(name, path) of the files that `spec` means, in natural order, or None when it can only be a hub name."""
    path = checked_path(spec, "data")
    if path.is_file():
        return [(stem(path.name), path)]
    if path.is_dir():
        training, held_out = _folder_files(path)
        chosen = {"training": training, "held-out": held_out, None: []}[part]
        files, root = chosen or training + held_out, path
    elif glob.has_magic(spec):
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        root = _glob_root(path)
        files = [match for match in found if _is_data_file(match) and not _in_a_circle(match, root)]
    elif spec.startswith((".", "/", "~")) or spec.endswith("/") or spec.lower().endswith(SUFFIXES):
        what = "is no regular file" if path.exists() else "does not exist"
        raise InputError(f"data {spec!r} {what}; give an existing file, folder or glob.")
    else:
        return None
    if not files:
        raise InputError(
            f"data {spec!r} matches no file that ends in {', '.join(SUFFIXES)}; check the path, "
            "and quote a glob so that the shell leaves it alone; subfolders need one, such as 'folder/**/*.jsonl'."
        )
    by_name = [(stem(match.relative_to(root).as_posix()), checked_path(match, "the data file")) for match in files]
    return sorted(by_name, key=lambda item: _natural(item[0]))


def _folder_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The training and the held-out files of a folder, by their names."""
    found = list(_files_below(folder, folder, None))
    return [path for path, part in found if part != "held-out"], [path for path, part in found if part == "held-out"]


def _files_below(folder: Path, root: Path, part: str | None) -> Iterator[tuple[Path, str | None]]:
    """The data files of a folder and what they are for: the outermost folder that says it decides, else the file's name."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "_")) or path.name in _METADATA:
            continue
        if _is_data_file(path):
            yield path, part or said_part(stem(path.name))
        elif path.is_dir() and not _in_a_circle(path / "file", root):
            said = said_part(path.name)
            if said or path.name.lower() == _DATA_FOLDER:
                yield from _files_below(path, root, part or said)


def _is_data_file(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def _in_a_circle(path: Path, root: Path) -> bool:
    """Whether a link leads the path below root to a folder that it has been in: the same file has a shorter path."""
    folders = [folder.resolve() for folder in path.parents if folder == root or root in folder.parents]
    return len(folders) > len(set(folders))


def _glob_root(pattern: Path) -> Path:
    """The folder that a glob starts from: all leading parts without wildcards."""
    fixed = Path(pattern.anchor)
    for part in pattern.relative_to(pattern.anchor).parts:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorting key under which numbers inside names count as numbers."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


@dataclass(frozen=True)
class _Reader:
    """How the rows of one source become records."""

    layout: Mapping[str, str]
    """Role to field of an instruction record."""
    messages: str | None
    """Field of the turns, where the records are conversations."""
    category_field: str | None

    @classmethod
    def of(cls, place: str, present: Collection[str], fields: Mapping[str, str], category_field: str | None) -> "_Reader":
        if "input" in fields and fields["input"] not in present:
            raise InputError(
                f"fields maps input to {fields['input']!r}, which no record of {place} has; "
                f"its fields are {_listed(sorted(present))}."
            )
        messages = fields.get("messages")
        if "messages" not in fields and not {"instruction", "output"} & set(fields):
            messages = next((name for name in MESSAGES_FIELDS if name in present), None)
        if category_field is None:
            category_field = next((name for name in CATEGORY_FIELDS if name in present), None)
        return cls(_layout(set(present), fields), messages, category_field)

    def records(self, place: str, rows: Iterable[Row]) -> Iterator[Record]:
        for number, row in rows:
            origin = f"{place}:{number}"
            value = _value(row, self.category_field)
            # An empty cell is how CSV says that there is none.
            category = None if value in (None, "") else str(value)
            if self.messages is not None:
                yield Record.of_turns(_turns(origin, row, self.messages), category, origin)
            else:
                instruction, input, output = (
                    _role_text(origin, row, role, self.layout.get(role)) for role in ("instruction", "input", "output")
                )
                yield Record(instruction, input, output, category, origin)


def _layout(present: set[str], fields: Mapping[str, str]) -> Mapping[str, str]:
    whole = [layout for layout in LAYOUTS if present.issuperset(layout.values())]
    enough = [layout for layout in LAYOUTS if {layout["instruction"], layout["output"]} <= present]
    return {**(whole + enough + [LAYOUTS[0]])[0], **fields}


def _value(row: Mapping[str, Any], field: str | None) -> Any:
    """A field's value; None where there is none, which pandas also writes as NaN."""
    value = row.get(field) if field else None
    return None if isinstance(value, float) and math.isnan(value) else value


def _role_text(origin: str, row: Mapping[str, Any], role: str, field: str | None) -> str:
    value = _value(row, field)
    if value is None and role == "input":
        return ""
    if value is None:
        lacks = f"holds nothing in the field {field!r}" if field in row else f"has no field {field!r}"
        raise InputError(
            f"{origin} {lacks} for its {role} (it has {_listed(row)}); "
            "correct the record, or name the fields of your data with the option fields."
        )
    return _text(origin, f"in the field {field!r}", value)


def _listed(names: Iterable[Any]) -> str:
    return printable(", ".join(map(str, names))) or "none"


def _text(origin: str, where: str, value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise InputError(
            f"{origin} has a {type(value).__name__} {where}, where text is needed; "
            "correct the record, or name another field with the option fields."
        )
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{origin} has half a character (a lone surrogate) {where}; correct the record.") from error
    return text


def _turns(origin: str, row: Mapping[str, Any], field: str) -> list[Turn]:
    """The turns of a conversation, an outside system text first."""
    messages = _value(row, field)
    if not isinstance(messages, list) or not messages:
        found = "an empty list" if messages == [] else "nothing" if messages is None else f"a {type(messages).__name__}"
        raise InputError(
            f"{origin} has {found} in the field {field!r}, where the turns of a conversation are needed; "
            "give objects with role and content or with from and value, or name another field with the option fields."
        )
    turns = [_turn(origin, number, message) for number, message in enumerate(messages, 1)]
    if all(turn.role != "assistant" for turn in turns):
        raise InputError(f"{origin} holds no assistant turn, so nothing can be learned from it; correct or remove it.")
    system = _value(row, SYSTEM_FIELD)
    if system and all(turn.role != "system" for turn in turns):
        turns.insert(0, Turn("system", _text(origin, f"in the field {SYSTEM_FIELD!r}", system)))
    return turns


def _turn(origin: str, number: int, message: Any) -> Turn:
    forms = [form for form in TURN_FIELDS if isinstance(message, Mapping) and form[0] in message]
    # In Parquet every turn has the fields of all turns, null where they are not its own.
    form = next((form for form in forms if message[form[0]] is not None), forms[0] if forms else None)
    if form is None:
        raise InputError(
            f"{origin} has a turn {number} without a speaker; every turn must be an object with "
            "role and content, or with from and value."
        )
    speaker, content = message[form[0]], message.get(form[1])
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise InputError(
            f"{origin} has a turn {number} by {speaker!r}, which is not supported; the speakers are {', '.join(SPEAKERS)}."
        )
    if not isinstance(content, str):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{origin} has {found} as the content of turn {number}, where text is needed; correct the record.")
    return Turn(SPEAKERS[speaker], _text(origin, f"in turn {number}", content))


def _check_distinct_names(sources: Sequence[Source]) -> None:
    seen: dict[str, Source] = {}
    for source in sources:
        if source.name in seen:
            raise InputError(
                f"{seen[source.name].place} and {source.place} would both be called {source.name!r}; name every "
                "file once, or use one glob over their common folder, which names them by their paths."
            )
        seen[source.name] = source


def _limited(sources: Sequence[Source], limit: int) -> list[Source]:
    sizes = np.array([len(source) for source in sources])
    if sizes.sum() <= limit:
        return list(sources)
    kept = []
    for source, count in zip(sources, apportion(limit, sizes), strict=True):
        stream = random_stream(_LIMIT_STREAM, zlib.crc32(source.name.encode()))
        chosen = np.sort(stream.permutation(len(source))[:count])
        read = partial(Records([source]).at, chosen)
        kept.append(Source(source.name, source.place, len(chosen), read, source.conversational))
    return kept

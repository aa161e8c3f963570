"""Loads records of instruction data from any source, in one form and each with its origin.

One option names the data: a local file, a folder, a glob, the name of a data set on Hugging Face or a built-in one. It is
resolved to a list of `Source`s, one per file, because in federated data a file is often a client. Every record keeps its
origin (`path:line`), so that a later error can name the line of the file.

A source is read as a stream, again in every pass: once to count its records and to collect its fields, then once per
iteration. Memory therefore does not grow with the data, except for a JSON array, which can only be parsed as a whole.

The parts of one file (`train-00000-of-00002`) become one source. Code that comes with a data set is never run: files are
read as data, and scripts are ignored.
"""

import glob
import logging
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

from devft_jax.data.built_in import BUILT_IN, built_in_name, load_built_in
from devft_jax.data.files import Scan, read_rows, scan_rows, shown, to_scan
from devft_jax.data.folders import Shard, local_files
from devft_jax.data.layouts import ROLES, Reader
from devft_jax.data.records import Record, Records, Source
from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable, whole_path

# First element of the random stream that selects the records kept by a limit.
_LIMIT_STREAM = 1

Load = Callable[[Mapping[str, str], str | None], Source]
"""Reads a source, given fields by role and the field of the category."""


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
        folder of such files, including those in its subfolders `data` and those named after a split; a
        glob; `name[:split]` of a data set on Hugging Face (with `owner/name/configuration` if it
        has several; split `train` by default); a built-in `name[:split[:count]]`. Files of a folder
        or glob are in natural order, 2 before 10, and shards (`-00000-of-00002`) are one source.
      fields: role (instruction, input, output, or messages for conversations) to field name, for
        records with other field names.
      category_field: field that holds the category; by default the first of `category`, `template`
        and `task` that occurs, if any.
      limit: at most this many records in all, a random subset that is the same for every run;
        every source keeps its share.
      held_out: for a spec that is a single folder with some files named as held-out data: return
        those files instead of the others. Any other spec is taken literally.

    Raises:
      InputError: nothing matches, or a file is unreadable; the message names the file and line. Iterating a
        source raises it for an invalid record.
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
    """Raise `InputError` if local files are named that do not exist; no file is read and no network is used.

    Args:
      spec: one or several data names.
    """
    for one in (spec,) if isinstance(spec, str) else spec:
        if one.partition(":")[0] not in BUILT_IN:
            local_files(one, None)


def named_from_anywhere(spec: str) -> str:
    """A data name in a form that can be stored: local files by their absolute path, others by name.

    Args:
      spec: a data name.
    """
    if not spec or spec.partition(":")[0] in BUILT_IN:
        return spec
    path = checked_path(spec, "data")
    return str(whole_path(path)) if path.exists() or glob.has_magic(spec) else spec


def source_names(spec: str | Sequence[str]) -> list[str]:
    """The names that the sources of training data would have, in order; no file is read and no network is used.

    Args:
      spec: one or several data names.

    Raises:
      InputError: a local file does not exist.
    """
    specs = (spec,) if isinstance(spec, str) else tuple(spec)
    return [name for name, _ in _planned(specs, None if len(specs) > 1 else "training")]


def _planned(specs: Sequence[str], part: str | None) -> list[tuple[str, Load]]:
    """The name of each source and its loader, in order; shards of one file are one source wherever they are named."""
    found: list[tuple[str, Load]] = []
    shards: dict[tuple[Path, str], list[Shard]] = {}
    for spec in specs:
        if spec.partition(":")[0] in BUILT_IN:
            found.append((built_in_name(spec), partial(load_built_in, spec)))
            continue
        files = local_files(spec, part)
        if files is None:
            found.append((spec, partial(_load_hub, spec)))
            continue
        for name, path in files:
            shard = Shard.of(name, path)
            if shard is None:
                found.append((name, partial(_load_files, name, [path])))
                continue
            others = shards.setdefault((path.parent, shard.whole), [])
            if not others:
                found.append((shard.whole, partial(_load_shards, others)))
            others.append(shard)
    return found


def _load_shards(shards: Sequence[Shard], fields: Mapping[str, str], category_field: str | None) -> Source:
    """One source from the shards of a file; warns if some are missing."""
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
    """One source from a file or from the shards of one."""
    scans = [scan_rows(path) for path in paths]
    present = {field: None for scan in scans for field in scan.fields}
    place = shown(paths[0])
    reader = Reader.of(place, list(present), fields, category_field)

    def read() -> Iterator[Record]:
        for path in paths:
            yield from reader.records(shown(path), read_rows(path))

    return Source(name, place, sum(scan.count for scan in scans), read, reader.messages is not None)


def _load_hub(spec: str, fields: Mapping[str, str], category_field: str | None) -> Source:
    """`owner/name[/configuration][:split]` on Hugging Face, by the `datasets` package."""
    import datasets

    name, _, split = spec.partition(":")
    parts = name.split("/")
    repository = "/".join(parts[:2])
    if Path(repository).exists():
        # The package would load it, or a script in it, instead of the data set of that name.
        raise InputError(
            f"data {spec!r} does not exist, and {repository!r} is a file or folder here; give its files by path or glob."
        )
    try:
        with _quiet("huggingface_hub"):
            rows = datasets.load_dataset(repository, *parts[2:3], split=split or "train", trust_remote_code=False)
    except Exception as error:  # the package raises a different type for every backend
        reason = printable(str(error).strip().split("\n")[0].rstrip(".")) or type(error).__name__
        raise InputError(
            f"data {spec!r} is not a local file or folder, and it could not be loaded from Hugging Face "
            f"({reason}); check the name and the connection, or download it and give the file."
        ) from error
    if not len(rows):
        raise InputError(f"data {spec!r} holds no record; choose another split.")
    columns = getattr(rows, "column_names", None)
    scan = Scan(len(rows), tuple(columns)) if columns else to_scan(spec, enumerate(rows, 1))
    reader = Reader.of(spec, scan.fields, fields, category_field)
    return Source(spec, spec, scan.count, lambda: reader.records(spec, enumerate(rows, 1)), reader.messages is not None)


@contextmanager
def _quiet(package: str) -> Iterator[None]:
    """Suppress a package's warnings, such as one for every attempt to reach a server: the outcome is reported once."""
    logger = logging.getLogger(package)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


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
    import numpy as np

    from devft_jax.data.partition import apportion, random_stream

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

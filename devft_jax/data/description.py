"""A split in words: the table for the terminal, and the fields of `split.json`."""

import numpy as np

from devft_jax.data.federated_data import FederatedData
from devft_jax.data.groups import Groups, category_groups
from devft_jax.data.tokens import Examples
from devft_jax.files import printable
from devft_jax.storage.split_record import ClientRecord, SplitRecord

_PLURALS = {"category": "categories", "topic": "topics", "length": "lengths in tokens"}
"""Plural names of the kinds of groups, for the table."""


def describe(data: FederatedData, *, max_clients: int = 50) -> str:
    """A table of the split for the terminal: examples, tokens and categories, topics or lengths of each client.

    Args:
      data: the data and its split.
      max_clients: further clients are only counted.
    """
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


def split_record(data: FederatedData) -> SplitRecord:
    """The split as stored in `split.json`: all groups in order, what each client has, and how prompts are worded.

    A client's groups are counts of examples by name, without groups that it does not have and examples without a category.

    Args:
      data: the data and its split.
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


def _shown_groups(data: FederatedData) -> Groups | None:
    """The groups by which a client's examples are counted: those used by the split, otherwise categories, if any."""
    if data.groups is not None:
        return data.groups
    # A client of a field split is its category.
    return category_groups(data.train) if data.train.category_names and data.partition != "field" else None


def _counts_by_name(groups: Groups, indices: np.ndarray) -> dict[str, int]:
    """Examples of each group that occurs, in the groups' order."""
    counts = groups.count(indices).tolist()
    return {name: count for name, count in zip(groups.names, counts, strict=True) if count}

"""Divides examples over clients: the held-out part, and which client has which examples.

Splits by topic, length and quantity do not depend on the order of the records, only on their contents and the seed. The
other drawn splits (iid, dirichlet) do, and so does the selection of `test_fraction`.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from devft_jax.data.examples import Examples
from devft_jax.data.groups import Groups, category_groups, content_keys, length_groups
from devft_jax.data.options import DataOptions
from devft_jax.data.partition import partition, random_stream
from devft_jax.data.records import Records, Source
from devft_jax.data.topics import find_topics
from devft_jax.errors import InputError

# First element of the random stream that selects test examples.
_HOLD_OUT_STREAM = 4


@dataclass(frozen=True, eq=False)
class Client:
    """One client and its examples.

    Attributes:
      name: name of the client.
      id: uint32 that does not depend on other clients: the number of a drawn part, or the CRC-32 of the name of a field or
        file. Two names collide with probability 2^-32 and then only share random streams.
      indices: i64[n], sorted, the client's examples.
    """

    name: str
    id: int
    indices: np.ndarray


def hold_out(examples: Examples, options: DataOptions, seed: int) -> tuple[Examples, Examples]:
    """The training and the test part, of whole records; each has at least one record.

    Args:
      examples: the examples to divide.
      options: the run's data options.
      seed: seed of the run.

    Raises:
      InputError: there is only one record.
    """
    owners = examples.owners
    size = int(owners[-1]) + 1
    if size < 2:
        raise InputError(f"test_fraction {options.test_fraction} cannot hold out part of one example; use more data.")
    wanted = round(options.test_fraction * size)
    if options.test_limit is not None:
        wanted = min(wanted, options.test_limit)
    count = min(max(wanted, 1), size - 1)
    order = random_stream(_HOLD_OUT_STREAM, seed).permutation(size)
    is_test = np.zeros(size, bool)
    is_test[order[:count]] = True
    return examples.take(np.flatnonzero(~is_test[owners])), examples.take(np.flatnonzero(is_test[owners]))


def split_groups(train: Examples, records: Records, method: str, options: DataOptions) -> Groups | None:
    """The groups used by a split by topic or length; None for other splits, which need only the examples.

    Args:
      train: the examples to split.
      records: the records from which they were made.
      method: method of the split.
      options: the run's data options.

    Raises:
      InputError: there are too few different texts or lengths.
    """
    if method == "length":
        return length_groups(train.lengths, options.partition_groups)
    if method == "topic":
        return find_topics(_Texts(records, train.record_index), options.partition_groups)
    return None


@dataclass(frozen=True)
class _Texts:
    """The text of each example, read again in every pass."""

    records: Records
    index: np.ndarray

    def __iter__(self) -> Iterator[str]:
        return (record.text for record in self.records.at(self.index))


def drawn_clients(
    train: Examples, groups: Groups | None, method: str, options: DataOptions, seed: int
) -> tuple[Client, ...]:
    """The clients of a drawn split.

    Args:
      train: the examples to split.
      groups: the groups used by the split; None for the examples' categories.
      method: method of the split.
      options: the run's data options.
      seed: seed of the run.

    Raises:
      InputError: there are fewer records than clients.
    """
    # Records are drawn, each represented by its last example, which holds most of it.
    owners = train.owners
    last = np.flatnonzero(np.diff(owners, append=len(owners)))
    # Splits by iid and dirichlet depend on the order of the records, which keeps earlier results valid.
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


def natural_clients(
    train: Examples, method: str, sources: Sequence[Source], options: DataOptions
) -> tuple[Examples, tuple[Client, ...]]:
    """The clients of a field or file split, and the examples of those clients that have enough of them.

    Args:
      train: the examples to split.
      method: field or file.
      sources: sources of the records.
      options: the run's data options.

    Raises:
      InputError: a client has no example, or all clients have too few.
    """
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

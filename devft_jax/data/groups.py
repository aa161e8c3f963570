"""Groups of examples: a category, a topic or a bin of lengths for each, by code and name.

A Dirichlet split draws over groups, and its table and picture count them.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from devft_jax.data.examples import Examples
from devft_jax.errors import InputError


@dataclass(frozen=True, eq=False)
class Groups:
    """The group of each of N examples.

    Attributes:
      kind: "category", "topic" or "length".
      codes: i32[N], index into `names`; -1 for an example without a group.
      names: G distinct names.
    """

    kind: str
    codes: np.ndarray
    names: tuple[str, ...]

    def count(self, indices: np.ndarray) -> np.ndarray:
        """i64[G], how many of the examples at `indices` each group has.

        Args:
          indices: i64[n], numbers of examples.
        """
        codes = self.codes[indices]
        return np.bincount(codes[codes >= 0], minlength=len(self.names))


def category_groups(examples: Examples) -> Groups:
    """The categories of the records.

    Args:
      examples: the records' examples.
    """
    return Groups("category", examples.category_codes, examples.category_names)


def length_groups(lengths: np.ndarray, num_bins: int) -> Groups:
    """Bins of `lengths` i64[N], in tokens, cut at the quantiles 1/num_bins, 2/num_bins ...

    Examples of the same length share a bin. If many do, bins differ in size and there may be fewer.

    Args:
      lengths: i64[N], in tokens.
      num_bins: largest number of bins.

    Raises:
      InputError: there is only one bin.
    """
    # The cuts are lengths that occur: every bin has an example, and the order of the lengths does not matter.
    cuts = np.unique(np.quantile(lengths, np.arange(1, num_bins) / num_bins, method="lower"))
    cuts = cuts[cuts < lengths.max()]
    if not len(cuts):
        raise InputError(
            f"partition 'length' finds all training examples in one bin of {lengths.min()} to {lengths.max()} tokens; "
            "raise partition_groups, or use another partition."
        )
    codes = np.searchsorted(cuts, lengths).astype(np.int32)
    bins = (lengths[codes == code] for code in range(len(cuts) + 1))
    names = tuple(f"{part.min()}-{part.max()}" if part.min() < part.max() else f"{part.min()}" for part in bins)
    return Groups("length", codes, names)


def content_keys(examples: Examples) -> np.ndarray:
    """u64[N], a digest of each example's tokens, prompt length and category, for `partition`.

    Args:
      examples: N examples.
    """
    names = (*examples.category_names, None)
    keys = np.empty(len(examples), "<u8")
    for index in range(len(examples)):
        place = f"{examples.prompt_lengths[index]} {names[examples.category_codes[index]]!r}"
        digest = hashlib.blake2b(place.encode("utf-8", "surrogatepass"), digest_size=8)
        digest.update(examples.row(index).astype("<i4").tobytes())
        keys[index] = int.from_bytes(digest.digest(), "little")
    return keys.astype(np.uint64)

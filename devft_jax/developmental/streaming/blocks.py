"""Divides a leaf along one axis into blocks whose float32 form is small."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Self

import numpy as np

Index = tuple[slice, ...]

SMALLEST_BLOCK = 2**16
LARGEST_BLOCK = 2**21
"""Smallest and largest size of a block in elements, over all layers together."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a leaf is divided into blocks.

    Attributes:
      axis: the axis along which it is divided.
      length: size of that axis.
      size: size of a block along the axis; the last block may be smaller.
    """

    axis: int
    length: int
    size: int

    @classmethod
    def of(cls, shape: tuple[int, ...], length: int | None = None, *, at_once: int = 1) -> Self:
        """Blocks of a weight of `shape` `[L, ...]`, all L layers in each.

        A block holds at most a quarter of a layer's elements, so that the block, its transpose and a product of its size
        stay within one float32 layer, and between 0.25 and 8 MiB in float32: smaller blocks would cost more calls than
        arithmetic, larger ones would not fit in the caches. The axis is the first one that is long enough, which keeps the
        reads contiguous.

        Args:
          shape: `[L, ...]`.
          length: number of equal pieces into which axis 1 can be divided, if it is the only axis that can be.
          at_once: number of blocks in memory at the same time, which share the bound.
        """
        layers, columns = shape[0], math.prod(shape[1:])
        elements = min(max(columns // 4, SMALLEST_BLOCK), LARGEST_BLOCK) // at_once
        wanted = max(1, min(columns, elements // max(layers, 1)))
        pieces = math.ceil(columns / wanted)
        long_enough = (axis for axis in range(1, len(shape)) if shape[axis] >= pieces)
        axis = next(long_enough, 1 + int(np.argmax(shape[1:])))
        if length is not None:
            axis = 1
        length = shape[axis] if length is None else length
        return cls(axis, length, max(1, min(length, wanted * length // max(columns, 1))))

    def indices(self) -> Iterator[Index]:
        """Numpy indices of the blocks, without the layer axis."""
        lead = (slice(None),) * (self.axis - 1)
        for start in range(0, self.length, self.size):
            yield (*lead, slice(start, min(start + self.size, self.length)))

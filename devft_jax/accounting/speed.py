"""How fast this machine multiplies matrices; a plan's time is projected from it.

A product of the shape of those in a model's layers, tokens x width by width x hidden, each at most 1024, is timed for about
a second. The best rate is stored in the cache folder as `speed.json`, by device, dtype, size and version of JAX. Training is
slower: operations between products, such as softmax and norms, take time but are not counted as operations.
"""

import json
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from devft_jax.errors import InputError
from devft_jax.files import cache_folder, read_json, write_atomically
from devft_jax.runtime.devices import versions

LARGEST = 1024
"""Most rows and columns: on a CPU larger products are not faster per operation, and would take long to measure."""

MEASURED_FOR = 0.7
"""Seconds during which products are timed, after the first ones."""

WAITING = 32
"""Products dispatched at once; enough to keep a device busy."""


@dataclass(frozen=True)
class Speed:
    """A measured rate of operations.

    Attributes:
      flops_per_second: of one device; on a CPU, of the device's share of the cores.
      device: the device that was measured.
      kept_in: the file in which the figure is stored; None if it could not be written.
    """

    flops_per_second: float
    device: str
    kept_in: Path | None = None


def measured_speed(rows: int, width: int, hidden: int, dtype: str) -> Speed:
    """The speed of products [rows, width] x [width, hidden]; measured once, then read from a file.

    If the file cannot be read or written, the rate is measured and not stored.

    Args:
      rows: tokens of a step.
      width: width of the model.
      hidden: width of its feed-forward layers.
      dtype: of both factors.
    """
    shape = tuple(min(LARGEST, size) for size in (rows, width, hidden))
    found = versions(jax.local_devices()[0])
    machine = f"{found['device']}, {os.cpu_count()} cores for {jax.local_device_count()} device(s)"
    name = f"{machine}, jax {found['jax']}, {dtype}, {'x'.join(map(str, shape))}"
    path = cache_folder() / "speed.json"
    known = _known(path)
    rate = known.get(name)
    if rate is None:
        rate = _measured(shape, dtype)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps({**known, name: rate}, indent=1) + "\n")
        except OSError:
            return Speed(rate, found["device"])
    return Speed(rate, found["device"], path)


def _known(path: Path) -> dict[str, float]:
    """The valid rates in the file, by name; empty if there is no file."""
    try:
        stored = read_json(path) if path.exists() else {}
    except InputError:
        return {}
    items = stored.items() if isinstance(stored, dict) else ()
    return {name: rate for name, rate in items if isinstance(rate, float) and 0 < rate < float("inf")}


def _measured(shape: tuple[int, ...], dtype: str) -> float:
    """Operations per second of the fastest of several products."""
    rows, width, hidden = shape
    left, right = jnp.ones((rows, width), dtype), jnp.ones((width, hidden), dtype)
    product = jax.jit(jnp.matmul)
    product(left, right).block_until_ready()
    # Enough products in a row that the clock's resolution and the cost of the call do not matter.
    count = 1
    while (seconds := _timed(product, left, right, count)) < MEASURED_FOR / 20:
        count *= 2
    best, until = seconds / count, time.perf_counter() + MEASURED_FOR
    while time.perf_counter() < until:
        best = min(best, _timed(product, left, right, count) / count)
    return 2.0 * rows * width * hidden / best


def _timed(product: Callable[[jax.Array, jax.Array], jax.Array], left: jax.Array, right: jax.Array, count: int) -> float:
    """Seconds for `count` products, with at most `WAITING` dispatched at once, so that their results fit on a device."""
    began, waiting = time.perf_counter(), deque[jax.Array]()
    for _ in range(count):
        waiting.append(product(left, right))
        if len(waiting) == WAITING:
            waiting.popleft().block_until_ready()
    jax.block_until_ready(list(waiting))
    return time.perf_counter() - began

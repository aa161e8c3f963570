"""Time and memory of the layer algebra on layers of LLaMA's shapes, relative to one plain read of the same bytes.

    python benchmarks/layer_algebra.py                          # LLaMA2-7B's 32 layers: 13 GB on disk
    python benchmarks/layer_algebra.py --scale 8                # every width divided by 8
    python benchmarks/layer_algebra.py --storage device         # jax arrays instead of memory-mapped files

Random bfloat16 weights are written layer by layer, so building needs no more memory than one layer. Every step runs
once, including compilation (and, for files, with the current page cache), and then `--repeat` times; the best is
reported. Memory is anonymous memory (`RssAnon`) sampled every few milliseconds, above its value before the step;
pages of the mapped input do not count. The output of a step is part of its peak; the rest, its scratch, should stay
within one float32 layer of the largest leaf. Linux only.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from anonymous_memory import peak_memory, status

from devft_jax.developmental import fuse, inherit, layer_map, layer_similarity

SHAPES = {
    # hidden, feed-forward, key-value width, layers
    "llama2-7b": (4096, 11008, 4096, 32),
    "llama2-13b": (5120, 13824, 5120, 40),
    "llama3.1-8b": (4096, 14336, 1024, 32),
}


def leaf_shapes(name: str, layers: int | None, scale: int) -> dict[str, tuple[int, ...]]:
    """The shape `[L, ...]` of every leaf of a stack of layers, widths divided by `scale`."""
    hidden, feed_forward, key_value, depth = SHAPES[name]
    d, f, kv, n = hidden // scale, feed_forward // scale, key_value // scale, layers or depth
    return {
        "q": (n, d, d),
        "k": (n, d, kv),
        "v": (n, d, kv),
        "o": (n, d, d),
        "gate": (n, d, f),
        "up": (n, d, f),
        "down": (n, f, d),
        "norm_attention": (n, d),
        "norm_mlp": (n, d),
    }


def write_leaf(path: Path, shape: tuple[int, ...], seed: int) -> np.memmap:
    """Random bfloat16 weights in a file, mapped for reading."""
    draw = np.random.default_rng(seed)
    with path.open("wb") as file:
        for _ in range(shape[0]):
            layer = draw.standard_normal(shape[1:], np.float32) * np.float32(0.02)
            layer.astype(ml_dtypes.bfloat16).tofile(file)
    return np.memmap(path, ml_dtypes.bfloat16, "r", shape=shape)


def plain_read(tree: Mapping[str, np.ndarray]) -> int:
    """Read every byte of a host tree once; the sum prevents that a read is optimised away."""
    total = 0
    for leaf in tree.values():
        words = leaf.reshape(-1).view(np.uint16)
        total += sum(int(words[i : i + 2**20].max()) for i in range(0, words.size, 2**20))
    return total


def measure(step: Callable[[], Any], repeat: int) -> tuple[float, float, int, int]:
    """Seconds of the first run, best seconds of the others, peak bytes of the others, bytes of the output."""
    start = time.perf_counter()
    jax.block_until_ready(step())
    first, best, peak, output = time.perf_counter() - start, math.inf, 0, 0
    for _ in range(repeat):
        with peak_memory() as peaks:
            start = time.perf_counter()
            result = jax.block_until_ready(step())
            best = min(best, time.perf_counter() - start)
        peak = max(peak, peaks[0])
        output = sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(result))
        del result
    return first, best, peak, output


def main() -> None:
    """Builds the stack, runs every step and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama2-7b")
    parser.add_argument("--layers", type=int, help="depth; by default the shape's own")
    parser.add_argument("--scale", type=int, default=1, help="divide every width by this")
    parser.add_argument("--groups", type=int, default=4, help="representative layers of the submodel")
    parser.add_argument("--storage", choices=("file", "device"), default="file")
    parser.add_argument("--folder", type=Path, help="folder for the files; by default a temporary one")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--mode", default="copy", help="mode of inherit")
    arguments = parser.parse_args()

    shapes = leaf_shapes(arguments.shape, arguments.layers, arguments.scale)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        start = time.perf_counter()
        host = {n: write_leaf(Path(folder) / n, s, i) for i, (n, s) in enumerate(shapes.items())}
        total = sum(leaf.nbytes for leaf in host.values())
        layer = max(math.prod(shape[1:]) for shape in shapes.values()) * 4
        print(f"{arguments.shape}: {shapes['q'][0]} layers, {total / 1e9:.3f} GB bfloat16, built in", end=" ")
        print(f"{time.perf_counter() - start:.1f} s; one float32 layer of the largest leaf {layer / 1e6:.1f} MB")

        tree = host if arguments.storage == "file" else jax.tree.map(jnp.asarray, host)
        stage = layer_map(tree, arguments.groups)
        trained = fuse(stage, tree)
        steps: dict[str, Callable[[], Any]] = {
            "plain read": lambda: plain_read(host),
            "layer_similarity": lambda: layer_similarity(tree),
            "layer_map": lambda: layer_map(tree, arguments.groups),
            "fuse": lambda: fuse(stage, tree),
            "inherit": lambda: inherit(stage, trained, tree, mode=arguments.mode),
        }
        print(f"{'step':18}{'first s':>9}{'best s':>9}{'x read':>8}{'peak MB':>9}{'output MB':>11}{'scratch MB':>12}")
        read = math.inf
        for name, step in steps.items():
            first, best, peak, output = measure(step, arguments.repeat)
            read = min(read, best)
            row = f"{name:18}{first:9.3f}{best:9.3f}{best / read:8.1f}{peak / 1e6:9.1f}{output / 1e6:11.1f}"
            print(f"{row}{(peak - output) / 1e6:12.1f}")
        print(f"groups {np.bincount(np.asarray(stage.assign)).tolist()}; VmHWM {status('VmHWM') / 1e9:.2f} GB")


if __name__ == "__main__":
    main()

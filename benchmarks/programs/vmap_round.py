"""Plain JAX: the whole round as one jitted function, clients under `jax.vmap`, the base shared, the adapters averaged.

With --at-once the clients go through `jax.lax.map`, so many at a time under `jax.vmap`: less memory, and faster where one
client's products fill the machine.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from llama import Llama, compiled
from protocol import Program, Work, serve


class VmapRound(Program):
    """One compiled round, every row padded to the longest of the round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        model = Llama(work)

        def whole_round(weights, adapters, batches):
            def client(batches):
                return model.train(work, weights, adapters, batches)

            if options.at_once is None:
                trained = jax.vmap(client)(batches)
            else:
                trained = jax.lax.map(client, batches, batch_size=options.at_once)
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), trained)

        self.inputs = model.weights, jax.device_put(work.adapters), jax.device_put(work.gather(work.order))
        self.whole_round = whole_round

    @functools.cached_property
    def program(self) -> Callable[..., Any]:
        """The compiled round; the first round compiles it."""
        return compiled(self.whole_round, *self.inputs)

    def round(self) -> None:
        """One call of the compiled round."""
        self.adapters, self.losses = jax.block_until_ready(self.program(*self.inputs))

    def result(self) -> tuple[dict[str, jax.Array], float]:
        """The means over clients."""
        return self.adapters, float(self.losses.mean())


if __name__ == "__main__":
    serve(VmapRound)

"""Plain JAX: the whole round as one jitted function, clients under `jax.vmap`, the base shared, the adapters averaged.

With --at-once N the clients are mapped by `jax.lax.map`, N at a time under `jax.vmap`: this takes less memory, and is faster
if one client's products use the whole machine.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
from llama import Llama, RoundProgram
from protocol import Work, serve


class VmapRound(RoundProgram):
    """One compiled round, every row padded to the longest of the round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        model = Llama(work)

        def whole_round(weights: Any, adapters: Any, batches: tuple[jax.Array, jax.Array]) -> Any:
            def client(batches: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
                return model.train(work, weights, adapters, batches)

            if options.at_once is None:
                trained = jax.vmap(client)(batches)
            else:
                trained = jax.lax.map(client, batches, batch_size=options.at_once)
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), trained)

        super().__init__(whole_round, model.weights, work.adapters, work.gather(work.order))


if __name__ == "__main__":
    serve(VmapRound)

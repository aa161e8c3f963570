"""Plain JAX: the whole round as one jitted function, clients under `jax.vmap`, the base shared, the adapters averaged."""

import argparse

import jax
import jax.numpy as jnp
from llama import Llama
from protocol import Program, Work, serve


class VmapRound(Program):
    """One compiled round over all clients at once, every row padded to the longest of the round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        model = Llama(work)

        def whole_round(weights, adapters, batches):
            trained, losses = jax.vmap(lambda batches: model.train(work, weights, adapters, batches))(batches)
            return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), trained), jnp.mean(losses)

        self.compiled = jax.jit(whole_round)
        self.inputs = model.weights, jax.device_put(work.adapters), jax.device_put(work.gather(work.order))

    def round(self) -> None:
        """One call of the compiled round."""
        self.adapters, self.loss = jax.block_until_ready(self.compiled(*self.inputs))

    def result(self) -> tuple[dict[str, jax.Array], float]:
        """The means over clients."""
        return self.adapters, float(self.loss)


if __name__ == "__main__":
    serve(VmapRound)

"""DrJAX: broadcast, map over clients and mean in its own words, the whole round jitted.

The base is closed over inside the mapped function: broadcast like the adapters, it would be copied for every client.
Without a mesh DrJAX leaves the placement to XLA; the round runs on one host device with all its threads.
"""

import argparse

import drjax
import jax
from llama import Llama
from protocol import Program, Work, serve


class DrjaxRound(Program):
    """One compiled round over all clients at once, every row padded to the longest of the round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        model = Llama(work)

        @jax.jit
        @drjax.program(placements={"clients": work.clients})
        def whole_round(weights, adapters, tokens, answer):
            def client(adapters, tokens, answer):
                return model.train(work, weights, adapters, (tokens, answer))

            trained = drjax.map_fn(client, (drjax.broadcast(adapters), tokens, answer))
            adapters, losses = drjax.reduce_mean(trained)
            return adapters, losses.mean()

        self.compiled = whole_round
        batches = work.gather(work.order)
        self.inputs = model.weights, jax.device_put(work.adapters), *jax.device_put(batches)

    def round(self) -> None:
        """One call of the compiled round."""
        self.adapters, self.loss = jax.block_until_ready(self.compiled(*self.inputs))

    def result(self) -> tuple[dict[str, jax.Array], float]:
        """The means over clients."""
        return self.adapters, float(self.loss)


if __name__ == "__main__":
    serve(DrjaxRound)

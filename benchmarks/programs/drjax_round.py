"""DrJAX: broadcast, map over clients and mean in its own words, the whole round jitted.

The base is closed over inside the mapped function: broadcast like the adapters, it would be copied for every client.
Without a mesh DrJAX leaves the placement to XLA; the round runs on one host device with all its threads.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import drjax
import jax
from llama import Llama, compiled
from protocol import Program, Work, serve


class DrjaxRound(Program):
    """One compiled round over all clients at once, every row padded to the longest of the round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        model = Llama(work)

        @drjax.program(placements={"clients": work.clients})
        def whole_round(weights, adapters, tokens, answer):
            def client(adapters, tokens, answer):
                return model.train(work, weights, adapters, (tokens, answer))

            return drjax.reduce_mean(drjax.map_fn(client, (drjax.broadcast(adapters), tokens, answer)))

        batches = work.gather(work.order)
        self.inputs = model.weights, jax.device_put(work.adapters), *jax.device_put(batches)
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
    serve(DrjaxRound)

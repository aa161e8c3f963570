"""DrJAX: a jitted round of its broadcast, its map over clients and its mean.

The mapped function closes over the base: if it were broadcast like the adapters, it would be copied for every client.
Without a mesh DrJAX leaves the placement to XLA; the round runs on one host device with all its threads.
"""

import argparse
from typing import Any

import drjax
import jax
from llama import Llama, RoundProgram
from protocol import Work, serve


class DrjaxRound(RoundProgram):
    """One compiled round over all clients at once, every row padded to the longest of the round."""

    def __init__(self, work: Work, options: argparse.Namespace):
        model = Llama(work)

        @drjax.program(placements={"clients": work.clients})
        def whole_round(weights: Any, adapters: Any, tokens: jax.Array, answer: jax.Array) -> Any:
            def client(adapters: Any, tokens: jax.Array, answer: jax.Array) -> tuple[Any, jax.Array]:
                return model.train(work, weights, adapters, (tokens, answer))

            return drjax.reduce_mean(drjax.map_fn(client, (drjax.broadcast(adapters), tokens, answer)))

        super().__init__(whole_round, model.weights, work.adapters, *work.gather(work.order))


if __name__ == "__main__":
    serve(DrjaxRound)

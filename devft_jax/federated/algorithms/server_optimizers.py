"""Server optimisers: FedIT whose server treats the clients' mean change as a gradient.

Let x = (a, b) be as the server sent it, x_i as client i returned it, and the mean over the round's participants; then

    d = mean_i (x_i - x)

is the round's update, and all powers, roots and quotients below are taken entry by entry.

    fedavgm      m <- beta1 m + (1 - beta1) d,                                     x <- x + m
    fedadagrad   v <- v + d^2,                                                     x <- x + eta d / (sqrt(v) + tau)
    fedyogi      m as above,  v <- v - (1 - beta2) m^2 sign(v - m^2),              x <- x + eta m / (sqrt(v) + tau)
    fedadam      m as above,  v <- beta2 v + (1 - beta2) m^2,                      x <- x + eta m / (sqrt(v) + tau)

eta is `server_learning_rate`, beta1 and beta2 are `server_beta1` and `server_beta2`, tau is `server_tau`; v begins at tau^2,
and m is d in the first round. FedAvgM is from Hsu et al. (2019), the others from Reddi et al. (ICLR 2021). FedAvgM weights
clients by their examples, the others uniformly. The server's state is never sent.

The forms above are those of OpenFedLLM, the framework that DevFT builds on. The papers differ in two of them, each with an
option: Hsu et al. do not average, m <- beta1 m + d (`momentum_form` sum), and the final version of Reddi et al. uses the
second moment of d instead of m (`second_moment` update). Neither has a bias correction. OpenFedLLM's own FedAdagrad stops
with an error because of a misspelt name; here it runs as its server is written.

The server's own x is float32, while d is measured from the rounded x that was sent: clients that learn nothing give d = 0 in
every message dtype, and no message's rounding accumulates in m or v.

A stage has its own layers: m, v and the count of rounds restart with each stage. A layer that does not learn has d = 0 and
is therefore unchanged.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from flax import struct

from devft_jax.federated.adapters import stage_adapter, with_returned_adapter
from devft_jax.federated.aggregation import WeightedSum
from devft_jax.federated.algorithm import Algorithm, Clients
from devft_jax.federated.algorithms import described
from devft_jax.federated.algorithms.fedit import fedit, mean_change
from devft_jax.federated.algorithms.options import ServerOptimizerOptions
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.architecture import ModelConfig

Lora = dict[str, LoraFactors]


class Server(struct.PyTreeNode):
    """The adapter, the moments m and v of its factors, and the stage's rounds so far.

    Attributes:
      adapter: the global adapter.
      first: m by projection; empty if a method has none.
      second: v by projection; empty if a method has none.
      age: i32[], the stage's rounds so far.
    """

    adapter: Adapter
    first: Lora
    second: Lora
    age: jax.Array


Rule = Callable[[Lora, Server], tuple[Lora, Lora, Lora]]
"""(update d, Server before the round) -> (step to add to the factors, m, v)."""


def with_server_rule(
    config: ServerOptimizerOptions,
    rule: Rule,
    *,
    moments: tuple[bool, bool],
    name: str,
    weighting: Literal["examples", "uniform"],
) -> Algorithm:
    """FedIT with the server's step computed by `rule`.

    Args:
      config: the run's options.
      rule: the server's step.
      moments: whether the method has m, and whether it has v.
      name: name of the algorithm.
      weighting: default weighting of messages.
    """
    federated = fedit(config)

    def fresh(adapter: Adapter) -> Server:
        first = optax.tree.zeros_like(adapter.lora) if moments[0] else {}
        second = optax.tree.full_like(adapter.lora, config.server_tau**2) if moments[1] else {}
        return Server(adapter=adapter, first=first, second=second, age=jnp.int32(0))

    def init_server(key: jax.Array, model: ModelConfig, clients: Clients) -> Server:
        return fresh(federated.init_server(key, model, clients))

    def finalize(server: Server, sums: WeightedSum) -> tuple[Server, dict[str, jax.Array]]:
        _, metrics = federated.finalize(server.adapter, sums)
        step, first, second = rule(mean_change(sums)[0], server)
        adapter = server.adapter.replace(lora=optax.tree.add(server.adapter.lora, step))
        metrics = metrics | {"update_norm": optax.tree.norm(step)}
        return Server(adapter=adapter, first=first, second=second, age=server.age + 1), metrics

    return dataclasses.replace(
        federated,
        **described(name),
        init_server=init_server,
        broadcast=lambda server: federated.broadcast(server.adapter),
        finalize=finalize,
        view=lambda server: server.adapter,
        submodel=lambda server, layer_map: fresh(stage_adapter(server.adapter, layer_map)),
        transfer=with_returned_adapter,
        weighting=weighting,
    )


def momentum(config: ServerOptimizerOptions, update: Lora, server: Server, *, gain: float) -> Lora:
    """m <- beta1 m + gain d, and d itself in a stage's first round.

    Args:
      config: gives `server_beta1`.
      update: d.
      server: the server before the round.
      gain: factor of d.
    """
    decayed = jax.tree.map(lambda m, d: config.server_beta1 * m + gain * d, server.first, update)
    return jax.tree.map(lambda m, d: jnp.where(server.age == 0, d, m), decayed, update)


def adaptive_step(config: ServerOptimizerOptions, direction: Lora, second: Lora) -> Lora:
    """eta m / (sqrt(v) + tau).

    Args:
      config: gives `server_learning_rate` and `server_tau`.
      direction: m.
      second: v.
    """
    eta, tau = config.server_learning_rate, config.server_tau
    return jax.tree.map(lambda m, v: eta * m / (jnp.sqrt(v) + tau), direction, second)


def fedavgm(config: ServerOptimizerOptions) -> Algorithm:
    """FedAvgM with the configured adapters, `server_beta1` and `momentum_form`.

    Args:
      config: the options of the run's methods.
    """
    gain = 1 - config.server_beta1 if config.momentum_form == "average" else 1.0

    def rule(update: Lora, server: Server) -> tuple[Lora, Lora, Lora]:
        first = momentum(config, update, server, gain=gain)
        return first, first, {}

    return with_server_rule(
        config,
        rule,
        moments=(True, False),
        name="fedavgm",
        weighting="examples",
    )


def fedadagrad(config: ServerOptimizerOptions) -> Algorithm:
    """FedAdagrad with the configured adapters, `server_learning_rate` and `server_tau`.

    Args:
      config: the options of the run's methods.
    """

    def rule(update: Lora, server: Server) -> tuple[Lora, Lora, Lora]:
        second = jax.tree.map(lambda v, d: v + d**2, server.second, update)
        return adaptive_step(config, update, second), {}, second

    return with_server_rule(
        config,
        rule,
        moments=(False, True),
        name="fedadagrad",
        weighting="uniform",
    )


def _with_both_moments(
    config: ServerOptimizerOptions, name: str, renew: Callable[[jax.Array, jax.Array], jax.Array]
) -> Algorithm:
    """FedYogi or FedAdam, which differ in how the next v is computed from v and the squared quantity."""

    def rule(update: Lora, server: Server) -> tuple[Lora, Lora, Lora]:
        first = momentum(config, update, server, gain=1 - config.server_beta1)
        squared = first if config.second_moment == "momentum" else update
        second = jax.tree.map(lambda v, x: renew(v, x**2), server.second, squared)
        return adaptive_step(config, first, second), first, second

    return with_server_rule(
        config,
        rule,
        moments=(True, True),
        name=name,
        weighting="uniform",
    )


def fedyogi(config: ServerOptimizerOptions) -> Algorithm:
    """FedYogi with the configured adapters and `server_` options.

    Args:
      config: the options of the run's methods.
    """
    rest = 1 - config.server_beta2
    return _with_both_moments(config, "fedyogi", lambda v, square: v - rest * square * jnp.sign(v - square))


def fedadam(config: ServerOptimizerOptions) -> Algorithm:
    """FedAdam with the configured adapters and `server_` options.

    Args:
      config: the options of the run's methods.
    """
    beta = config.server_beta2
    return _with_both_moments(config, "fedadam", lambda v, square: beta * v + (1 - beta) * square)

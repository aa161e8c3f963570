"""The only module of the benchmarks that uses this project's engine: a work as model, data and state of a `Trainer`.

`train(config, model=..., data=...)` also evaluates, saves checkpoints and writes a report. Only
`Trainer.round` is timed, with default settings: drawing the cohort and the order of the data, assembling batches,
training, aggregation, and the metrics of the round.

Every round is run as the first of a run. The engine draws its data order itself; `works.py` wrote the batches of all
programs in that order.
"""

import copy
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from protocol import TARGETS, Arrays, Program, Work

from devft_jax import RunConfig
from devft_jax.data import Client, Examples, FederatedData, draw_examples
from devft_jax.models import Model, load_pretrained
from devft_jax.models.adapter import LoraFactors
from devft_jax.reporting import Progress
from devft_jax.training.parts import build_parts
from devft_jax.training.state import State
from devft_jax.training.trainer import Trainer

SEED = 0


def first_order(clients: int, steps: int, batch: int) -> np.ndarray:
    """The examples i64[C, S, B] that the engine draws in the first round, where client c has examples c S B to (c + 1) S B -
    1."""
    held = np.arange(clients * steps * batch).reshape(clients, -1)
    return np.stack(
        [
            draw_examples(own, seed=SEED, round=0, client_id=client, steps=steps, batch_size=batch)
            for client, own in enumerate(held)
        ]
    )


def configuration(work: Work, **changes: Any) -> RunConfig:
    """The options of the work's protocol; options of execution keep their defaults."""
    settings: dict[str, Any] = {
        "seed": SEED,
        "algorithm": "fedit",
        "growth": "end-to-end",
        # As many as let the engine search how many clients are trained at once, where it does that.
        "rounds": 500,
        "clients": work.clients,
        "clients_per_round": work.clients,
        "local_steps": work.steps,
        "batch_size": work.batch,
        "weighting": "uniform",
        "max_length": int(work.lengths.max()),
        "rank": work.rank,
        "alpha": work.alpha,
        "dropout": 0.0,
        "targets": TARGETS,
        "learning_rate": (work.learning_rate,),
        "schedule": "constant",
        "weight_decay": work.weight_decay,
        "clip_norm": 0.0,
        "beta1": work.beta1,
        "beta2": work.beta2,
        "epsilon": work.epsilon,
        # A compiling thread would disturb the timing.
        "compile_ahead": "off",
    }
    return RunConfig(**{**settings, **changes})


def federated_data(work: Work) -> FederatedData:
    """The work's examples, each client holding those of its own steps."""
    examples = Examples.of_rows(work.rows, lengths=work.lengths, prompt_lengths=work.prompt_lengths)
    held = np.sort(work.order.reshape(work.clients, -1))
    clients = tuple(Client(str(index), index, own) for index, own in enumerate(held))
    return FederatedData(examples, clients, "iid", None, "completion")


def start_trainer(work: Work, layers: int | None = None, **changes: Any) -> tuple[Trainer, State]:
    """A trainer of the work and the state before its first stage, with the work's adapters.

    Args:
      work: what is trained.
      layers: how many of the model's first layers are used; None for all.
      changes: options that differ from `configuration`.
    """
    whole = load_pretrained(work.model, dtype="float32")
    blocks = jax.tree.map(lambda leaf: leaf[:layers], whole.base.blocks)
    model = Model(whole.config.with_layers(len(blocks.norm_mlp)), whole.base.replace(blocks=blocks))
    progress = Progress(quiet=True)
    trainer = Trainer(build_parts(configuration(work, **changes), model=model, data=federated_data(work), progress=progress))
    state = trainer.begin()
    lora = {
        name: LoraFactors(*(jnp.asarray(work.adapters[f"{name}.{factor}"][:layers]) for factor in "ab")) for name in TARGETS
    }
    return trainer, replace(state, full=state.full.replace(lora=lora))


class Engine(Program):
    """Rounds of a work by this project, on the model's first `layers` layers if given."""

    def __init__(self, work: Work, layers: int | None = None):
        drawn = first_order(work.clients, work.steps, work.batch)
        if not np.array_equal(drawn, work.order):
            raise ValueError(
                f"the work {work.name} was written in a different data order from the engine's; write it again."
            )
        self.trainer, state = start_trainer(work, layers)
        self.trainer.begin_stage(state, [])
        self.first = state

    def round(self) -> None:
        """The first round of a run."""
        state = replace(self.first, totals=copy.deepcopy(self.first.totals))
        self.row = self.trainer.round(state)
        self.state = jax.block_until_ready(state)
        self.first.totals.clients_per_step = state.totals.clients_per_step
        self.first.totals.clients_per_step_settled = state.totals.clients_per_step_settled

    def figures(self) -> dict[str, float]:
        """Operations of the round's training, by this project's own count."""
        return {"flops": self.row.train_flops}

    def result(self) -> tuple[Arrays, float]:
        """The global adapter after the round."""
        lora = self.state.server.lora
        return {f"{name}.{factor}": getattr(lora[name], factor) for name in TARGETS for factor in "ab"}, self.row.loss

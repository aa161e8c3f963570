"""Evaluates a run's models on held-out data: the stage's model, and the full model with what was learned so far."""

import dataclasses
import time

import jax

from devft_jax.evaluation.judgement import Judgement
from devft_jax.training.parts import Parts
from devft_jax.training.state import State
from devft_jax.typing import PyTree


def transferred(parts: Parts, state: State) -> PyTree:
    """The full-depth state with what the current stage has learned so far."""
    return parts.algorithm.transfer(state.full, state.server, state.layer_map, parts.config.transfer)


def evaluate_stage(parts: Parts, state: State) -> Judgement | None:
    """Evaluate the stage's model, or the clients' own models; None without held-out data."""
    model = _named(parts, f"stage {state.stage + 1}'s model")
    with parts.progress.doing(f"evaluating {model} on held-out data"):
        bank = state.bank.view(full=False)
        return parts.evaluator.models(state.base, state.server, bank, state.totals.seconds)


def evaluate_full(parts: Parts, state: State, full: PyTree) -> Judgement | None:
    """Evaluate the full model, or the clients' own models at full depth; None without held-out data.

    Args:
      parts: the run's parts.
      state: the run's state, of which the bank and the seconds are used.
      full: the algorithm's state at full depth.
    """
    with parts.progress.doing(f"evaluating {_named(parts, 'the full model')} on held-out data"):
        return parts.evaluator.models(parts.base, full, state.bank.view(full=True), state.totals.seconds)


def evaluate_as_if_ended(parts: Parts, state: State) -> Judgement | None:
    """Evaluate the full model as if the current stage, of a submodel, ended now; None without held-out data."""
    began = time.perf_counter()
    full = jax.block_until_ready(transferred(parts, state))
    state.totals.seconds.evaluate += time.perf_counter() - began
    return evaluate_full(parts, state, full)


def with_own_models(parts: Parts, state: State, judged: Judgement) -> Judgement | None:
    """The evaluation of the global model at the end of the run, with that of each client's own model."""
    with parts.progress.doing("evaluating every client's own model on held-out data"):
        own = parts.evaluator.own_models(parts.base, state.full, state.bank.view(full=True), state.totals.seconds)
    return None if own is None else dataclasses.replace(judged, personal=own.personal)


def _named(parts: Parts, model: str) -> str:
    """The evaluated model in words: for methods without a global model, every client's own model."""
    return model if parts.algorithm.has_global_model else "every client's own model"

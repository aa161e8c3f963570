"""Comparisons made up from figures, without a run."""

import dataclasses

from devft_jax.comparing.tables import ArmResult, Budget, Comparison, Outcome, Point
from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig


def outcome(seed, loss, *, accuracy=0.1, sent=1000, work=10**9, seconds=2.0, folder="runs/x", **more):
    """A run of four rounds whose loss falls in equal steps from 5 to `loss`."""
    summary = {
        "final_loss": loss,
        "accuracy": accuracy,
        "base_loss": 5.0,
        "base_accuracy": 0.0,
        "bytes_up": sent,
        "bytes_down": sent,
        "bytes_stage": 0,
        "train_flops": work,
        "seconds": {"train": seconds, "compile": 1.0, "build": 0.5, "evaluate": 9.0},
        "peak_memory_bytes": 10**9,
        "peak_memory_source": "process peak resident set",
        "personal_models": False,
        "personal": None,
        "versions": {"jax": "1"},
        **more,
    }
    parts = [number / 4 for number in range(5)]
    curve = []
    if loss is not None:
        curve = [
            Point(number, seconds * part, sent * part, work * part, 5 + (loss - 5) * part)
            for number, part in enumerate(parts)
        ]
    return Outcome(seed, f"{folder}-{seed}", summary, curve)


def failed(seed, error="3 of 4 updates are not finite."):
    return Outcome(seed, f"runs/failed-{seed}", error=error)


def arm(name, losses, *, changes=None, note="", pools=False, tuning=None, **more):
    """An arm whose run of seed i ends at the i-th loss; None fails."""
    config = {**to_plain(RunConfig(rounds=4)), **(changes or {})}
    outcomes = [
        failed(seed) if loss is None else outcome(seed, loss, folder=f"runs/{name}", **more)
        for seed, loss in enumerate(losses)
    ]
    return ArmResult(name, config, changes or {}, note, outcomes, pools, tuning)


def comparison(*arms, kinds=("rounds",), target=None, given=False, rates=(), **changes):
    """A comparison of the same arms under each budget, the first of them the reference."""
    budgets = [Budget(kind, f"Equal {kind}: as many", arms) for kind in kinds]
    seeds = tuple(outcome.seed for outcome in arms[0].outcomes)
    common = to_plain(RunConfig(rounds=4, evaluate_every=1))
    tuning_seed = 1000 if rates else None
    made = Comparison(budgets, arms[0].name, seeds, target, given, tuning_seed, rates, common, "devft compare")
    return dataclasses.replace(made, **changes)

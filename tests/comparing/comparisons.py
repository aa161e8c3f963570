"""Comparisons made up from figures, without a run."""

import dataclasses

from devft_jax.comparing.results import ArmResult, Budget, Comparison, Outcome, Point, judged_alike
from devft_jax.config.files import config_from_mapping
from devft_jax.config.run_config import RunConfig
from devft_jax.storage.records import SecondsRecord
from tests.run_records import run_record


def record(loss, **changes):
    """The record of a run of four rounds that ended at this loss."""
    values = {
        "final_loss": loss,
        "base_loss": 5.0,
        "accuracy": 0.1,
        "base_accuracy": 0.0,
        "rounds": 4,
        "stage_rounds": [4],
        "seconds": SecondsRecord(train=2.0, compile=1.0, build=0.5, evaluate=9.0),
        "bytes_up": 1000,
        "bytes_down": 1000,
        "bytes_stage": 0,
        "train_flops": 10**9,
        "energy": None,
        "peak_memory_bytes": 10**9,
        "peak_memory_source": "process peak resident set",
    }
    return run_record(**{**values, **changes})


def outcome(seed, loss, *, accuracy=0.1, sent=1000, work=10**9, seconds=2.0, folder="runs/x", judged=True, **more):
    """A run of four rounds whose loss falls in equal steps from 5 to `loss`; not `judged` where nothing is held out."""
    made = record(
        loss if judged else None,
        accuracy=accuracy,
        bytes_up=sent,
        bytes_down=sent,
        train_flops=work,
        seconds=SecondsRecord(train=seconds, compile=1.0, build=0.5, evaluate=9.0),
        **more,
    )
    parts = [number / 4 for number in range(5)]
    curve = []
    if loss is not None:
        curve = [
            Point(number, seconds * part, sent * part, work * part, 5 + (loss - 5) * part)
            for number, part in enumerate(parts)
        ]
    return Outcome(seed, f"{folder}-{seed}", made, curve)


def failed(seed, error="3 of 4 updates are not finite."):
    return Outcome(seed, f"runs/failed-{seed}", error=error)


def arm(name, losses, *, changes=None, note="", pools=False, tuning=None, **more):
    """An arm whose run of seed i ends at the i-th loss; None fails."""
    config = config_from_mapping(changes or {}, RunConfig(rounds=4))
    outcomes = [
        failed(seed) if loss is None else outcome(seed, loss, folder=f"runs/{name}", **more)
        for seed, loss in enumerate(losses)
    ]
    return ArmResult(name, config, changes or {}, note, outcomes, pools, tuning)


def comparison(*arms, kinds=("rounds",), target=None, given=False, rates=(), **changes):
    """A comparison of the same arms under each budget, the first of them the reference."""
    budgets = [Budget(kind, f"Equal {kind}: as many", arms) for kind in kinds]
    seeds = tuple(outcome.seed for outcome in arms[0].outcomes)
    common = RunConfig(rounds=4, evaluate_every=1)
    tuning_seeds = (1000,) if rates else ()
    made = Comparison(budgets, arms[0].name, seeds, target, given, tuning_seeds, rates, common, "devft compare")
    return dataclasses.replace(made, **changes)


def judged_at(made, rounds, every):
    """The arm with its runs judged after these rounds alone."""
    outcomes = [
        dataclasses.replace(each, curve=[point for point in each.curve if point.round in rounds]) for each in made.outcomes
    ]
    return dataclasses.replace(made, outcomes=[judged_alike(each, every) for each in outcomes])

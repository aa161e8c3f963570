"""Bad options are named in one sentence."""

import dataclasses

import pytest

from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.errors import InputError


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"rounds": "3"}, "rounds '3'"),
        ({"rounds": True}, "rounds True"),
        ({"capacities": (8, 4)}, "ascend"),
        ({"capacities": ()}, "capacities"),
        ({"capacity_schedule": "cubic"}, "capacity_schedule 'cubic' is unknown; choose from geometric"),
        ({"capacity_schedule": "eigengap", "growth": "top-grow"}, "'eigengap' needs growth devft, not top-grow"),
        ({"stages": 0}, "stages 0 is not positive"),
        ({"stage_end": "never"}, "stage_end 'never' is unknown; choose from fixed, plateau, gain"),
        ({"gain_every": 0}, "gain_every 0 is not positive"),
        ({"gain_cost": "time"}, "gain_cost 'time' is unknown; choose from bytes, flops"),
        ({"plateau_rounds": 0}, "plateau_rounds 0 is not positive"),
        ({"plateau_improvement": 1.0}, "plateau_improvement 1.0 is outside [0, 1)"),
        ({"min_stage_rounds": 0}, "min_stage_rounds 0 is not positive"),
        ({"progfed_schedule": "thirds"}, "progfed_schedule 'thirds' is unknown; choose from halving, equal"),
        ({"warmup_rounds": -1}, "warmup_rounds -1 is negative"),
        ({"capacities": (0, 4)}, "capacities"),
        ({"growth": "sideways"}, "growth 'sideways'"),
        ({"grouping": "x"}, "'x'"),
        ({"fusion": "x"}, "'x'"),
        ({"transfer": "x"}, "transfer 'x'"),
        ({"algorithm": "x"}, "algorithm 'x'"),
        ({"optimizer": "x"}, "optimizer 'x'"),
        ({"schedule": "x"}, "schedule 'x'"),
        ({"partition": "x"}, "partition 'x'"),
        ({"template": "x"}, "template 'x'"),
        ({"dtype": "float8"}, "dtype 'float8'"),
        ({"remat": "x"}, "remat 'x'"),
        ({"beta": "large"}, "beta"),
        ({"beta": float("nan")}, "beta"),
        ({"learning_rate": ()}, "learning_rate"),
        ({"learning_rate": (1e-4, 1e-3), "capacities": (2, 4, 8)}, "learning_rate has 2 rates for 3"),
        ({"learning_rate": (float("inf"),)}, "learning_rate"),
        ({"beta": 10.0}, "beta 10.0 is outside [0, 1]"),
        ({"beta": -0.1}, "beta -0.1 is outside [0, 1]"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"rank": 0}, "rank 0"),
        ({"targets": ("q", "w")}, "targets 'w'"),
        ({"clients_per_step": 0}, "clients_per_step 0"),
        ({"seed": -1}, "seed -1"),
        ({"stage_rounds": (3, 0)}, "stage_rounds"),
        ({"max_nonfinite": 1.0}, "max_nonfinite"),
        ({"evaluate_every": -1}, "evaluate_every"),
        ({"evaluate_tasks": ("a",), "evaluate_tasks_every": -1}, "evaluate_tasks_every"),
        ({"evaluate_tasks": ("a", "a")}, "evaluate_tasks"),
        ({"checkpoint_every": 0}, "checkpoint_every"),
        ({"weighting": "x"}, "weighting 'x'"),
        ({"weight_decay": float("nan")}, "weight_decay nan"),
        ({"clip_norm": float("nan")}, "clip_norm nan"),
        ({"epsilon": float("inf")}, "epsilon inf"),
        ({"min_learning_rate": float("nan")}, "min_learning_rate nan"),
        ({"alpha": float("nan")}, "alpha nan"),
        ({"message_dtype": "int4"}, "message_dtype 'int4'"),
    ],
)
def test_bad_options_are_named(changes, words):
    with pytest.raises(InputError) as caught:
        validate(dataclasses.replace(RunConfig(), **changes))
    sentence = str(caught.value)
    assert words in sentence
    assert "\n" not in sentence

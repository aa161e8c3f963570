"""The options of a run as one dataclass."""

import dataclasses

import pytest

from devft_jax.commands.run import parse_run
from devft_jax.config.files import config_from_mapping
from devft_jax.config.run_config import OPTION_GROUPS, RunConfig
from devft_jax.errors import InputError
from devft_jax.options import own_fields


def test_every_option_belongs_to_one_room_and_is_documented():
    names = [field.name for group in OPTION_GROUPS for field in own_fields(group)]
    assert len(names) == len(set(names))
    assert set(names) == {field.name for field in dataclasses.fields(RunConfig)}


def test_a_flag_is_not_taken_for_a_value():
    with pytest.raises(InputError, match="--config needs a value"):
        parse_run(["--config", "--rounds", "3"])


@pytest.mark.parametrize(
    ("name", "written", "known"),
    [
        ("algorithm", "FedIT", "fedit"),
        ("transfer", "DELTA", "delta"),
        ("fusion", "Mean", "mean"),
        ("grouping", "Even_Blocks", "even_blocks"),
        ("schedule", "Cosine", "cosine"),
        ("remat", "Dots", "dots"),
        ("dtype", "BFloat16", "bfloat16"),
    ],
)
def test_names_are_known_in_any_case_wherever_they_are_written(name, written, known):
    assert getattr(RunConfig(**{name: written}), name) == known
    assert getattr(dataclasses.replace(RunConfig(), **{name: written}), name) == known
    assert getattr(config_from_mapping({name: written}), name) == known

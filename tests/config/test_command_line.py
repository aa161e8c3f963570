"""The command line of a configuration says it: parsing it gives the same configuration again."""

import dataclasses
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.commands.run import parse_run
from devft_jax.config.command_line import command_line, differing, nearest_preset
from devft_jax.config.effects import check_effects
from devft_jax.config.files import config_from_mapping, to_plain
from devft_jax.config.presets import PRESETS, preset
from devft_jax.config.run_config import RunConfig

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12) | st.text(
    "ab,[]\"'{} -none\\", max_size=8
)
PATH = TEXT.filter(lambda text: text and not text.startswith("~"))
CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "rounds": st.integers(1, 500),
        "out": PATH,
        "data": PATH | st.lists(PATH, max_size=3).map(tuple),
        "test_data": st.none() | PATH,
        "learning_rate": st.lists(st.floats(1e-9, 1.0), min_size=1, max_size=3).map(tuple),
        "capacities": st.none() | st.lists(st.integers(1, 40), max_size=3).map(tuple),
        "beta": st.just("auto") | st.floats(0, 1),
        "attention": st.sampled_from(["auto", "xla"]),
        "devices": st.none() | st.integers(1, 8),
        "targets": st.just(("q", "k", "v")),
        "evaluate_full": st.booleans(),
        "clients_per_step": st.just("auto") | st.integers(1, 9),
        "fields": st.none() | st.dictionaries(TEXT, TEXT, max_size=2),
    },
)


def parsed(command):
    words = shlex.split(command)
    assert words[:2] == ["devft", "run"]
    return parse_run(words[2:])


@settings(max_examples=60)
@given(st.sampled_from([None, *PRESETS]), CHANGES)
def test_a_command_parses_back_to_its_configuration(name, changes):
    config = dataclasses.replace(RunConfig() if name is None else preset(name), **changes)
    assert parsed(command_line(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_again(name):
    config = dataclasses.replace(preset(name), rounds=7, seed=3, out="runs/a b")
    assert nearest_preset(config) == name
    command = command_line(config)
    assert command == f"devft run --preset {name} --seed 3 --rounds 7 --out 'runs/a b'"
    assert parsed(command) == config


def test_the_defaults_need_no_flags():
    assert nearest_preset(RunConfig()) is None
    assert command_line(RunConfig()) == "devft run"
    assert differing(RunConfig(rank=4), RunConfig()) == {"rank": 4}


def test_usual_values_are_said_by_flags():
    config = RunConfig(
        data="my data.json",
        capacities=(2, 4),
        beta="auto",
        learning_rate=(1e-06, 0.003),
        fields={"instruction": "ask it", "output": "say"},
        stage_rounds=(3, 4),
    )
    assert parsed(command_line(config)) == config


@pytest.mark.parametrize(
    "change",
    [
        {"data": ("a.json", "b.json")},
        {"data": ("a,b.json", "c.json")},
        {"data": "a,b.json"},
        {"data": ("a.json",)},
        {"data": ("none", "a.json")},
        {"data": "[ab].json"},
        {"data": '["a"]'},
        {"data": "a\tb"},
        {"out": "-a"},
        {"category_field": ""},
        {"out": "none"},
        {"out": '"a"'},
        {"out": "a\x1b[2J"},
        {"model": "None"},
        {"capacities": ()},
        {"capacities": (4,)},
        {"fields": {}},
        {"fields": {"instruction": "--ask", "output": ""}},
        {"gauge_alignment": True},
        {"test_data": "a b.json"},
    ],
    ids=str,
)
def test_every_value_can_be_said_by_flags(change):
    command = command_line(dataclasses.replace(RunConfig(), **change))
    assert command.isprintable()
    assert parsed(command) == dataclasses.replace(RunConfig(), **change)


def test_a_runs_record_is_said_without_what_follows_or_does_not_matter():
    arm = dataclasses.replace(RunConfig(), algorithm="fedit", growth="end-to-end", prox_mu=0.5, capacities=(4, 8), rank=8)
    stored = config_from_mapping(to_plain(arm))
    assert stored.alpha == 16.0
    assert command_line(stored) == "devft run --rank 8 --growth end-to-end"
    check_effects(parsed(command_line(stored)))
    other = dataclasses.replace(stored, alpha=64.0)
    assert command_line(other) == "devft run --rank 8 --alpha 64.0 --growth end-to-end"


def test_a_run_whose_method_cannot_be_imported_here_still_has_a_command():
    elsewhere = dataclasses.replace(RunConfig(), algorithm="absent_module:mine", prox_mu=0.5, stages=3)
    assert command_line(elsewhere) == "devft run --stages 3 --algorithm absent_module:mine --prox-mu 0.5"

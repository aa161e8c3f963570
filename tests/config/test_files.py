"""Configurations as files: what they say, and what is said of bad ones."""

import json

import pytest

from devft_jax.commands.run import parse_run
from devft_jax.config.files import config_from_mapping, read_config, stored_config, to_plain
from devft_jax.config.presets import preset
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.errors import InputError


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_a_file_says_what_flags_say_and_flags_win(tmp_path, suffix):
    values = {"preset": "demo", "rounds": 12, "capacities": [2, 16], "learning_rate": 0.001, "beta": "auto"}
    path = tmp_path / f"run.{suffix}"
    path.write_text(json.dumps(values))
    from_file = read_config(path)
    flags = ["--preset", "demo", "--rounds", "12", "--capacities", "2,16", "--learning-rate", "0.001", "--beta", "auto"]
    assert from_file == parse_run(flags)
    assert parse_run(["--config", str(path), "--rounds", "7"]).rounds == 7
    assert parse_run([f"--config={path}"]) == from_file
    validate(from_file)


def test_plain_values_round_trip():
    config = preset("paper-llama2-7b")
    assert config_from_mapping(to_plain(config)) == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("round: 4", "did you mean 'rounds'"),
        ("[1, 2]", "must hold options by name"),
        ("a: [", "not valid YAML"),
        ("preset: nothing", "preset 'nothing'"),
        ("preset: [a]", "preset"),
        ("1: 2", "option '1'"),
    ],
)
def test_bad_files_are_named(tmp_path, text, words):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_config(path)


def test_yaml_rates_and_single_values_are_understood(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: [1e-6, 1e-5]\ncapacities: 4\nbeta: auto\nmin_learning_rate: 1e-7\n")
    config = read_config(path)
    assert (config.learning_rate, config.capacities, config.beta) == ((1e-6, 1e-5), (4,), "auto")
    assert config.min_learning_rate == 1e-7
    path.write_text("learning_rate: 1e-3\n")
    assert read_config(path).learning_rate == (1e-3,)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "words"),
    [({"head_rovs": 1}, "the option 'head_rovs' does not exist"), ({"rounds": [7]}, "rounds"), ({"alpha": None}, "alpha")],
)
def test_a_damaged_option_of_a_stored_run_is_named_with_its_file(tmp_path, change, words):
    with pytest.raises(InputError, match=rf"{tmp_path}/config.json does not fit this version \(.*{words}.*restore it"):
        stored_config(to_plain(RunConfig()) | change, tmp_path)

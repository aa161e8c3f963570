import dataclasses
import json
import os

import pytest

from devft_jax.commands.run import parse_run
from devft_jax.config.files import config_from_mapping, read_config, stored_config, to_plain
from devft_jax.config.identity import anchored, identity, identity_hash
from devft_jax.config.presets import PRESETS, preset
from devft_jax.config.run_config import ROOMS, RunConfig
from devft_jax.config.validation import validate
from devft_jax.errors import InputError
from devft_jax.options import own_fields


def test_every_option_belongs_to_one_room_and_is_documented():
    names = [field.name for room in ROOMS for field in own_fields(room)]
    assert len(names) == len(set(names))
    assert set(names) == {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    validate(preset(name))


def test_paper_presets_carry_the_papers_values():
    small, large = preset("paper-llama2-7b"), preset("paper-llama2-13b")
    assert small.capacities == (4, 8, 16, 32)
    assert small.learning_rate == (1e-6, 1e-5, 1e-4, 1e-4)
    assert (small.rounds, small.clients, small.clients_per_round) == (300, 20, 2)
    assert (small.local_steps, small.batch_size, small.max_length) == (10, 16, 512)
    assert (small.rank, small.alpha, small.dropout, small.targets) == (32, 64.0, 0.05, ("q", "v"))
    assert small.quantization == large.quantization == "nf4"
    assert (large.capacities, large.rounds, large.beta) == ((5, 10, 20, 40), 400, 0.15)


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


def test_alpha_follows_the_rank_and_is_stored_as_a_number():
    assert to_plain(RunConfig(rank=8))["alpha"] == identity(RunConfig(rank=8))["alpha"] == 16.0
    assert identity(RunConfig()) == identity(RunConfig(alpha=64.0))
    assert identity_hash(RunConfig()) == identity_hash(RunConfig(alpha=64.0))
    assert to_plain(parse_run(["--rank", "8", "--alpha", "64"]))["alpha"] == 64.0
    assert to_plain(parse_run(["--rank", "8", "--alpha", "auto"]))["alpha"] == 16.0
    # The presets are what was measured, or what the paper used.
    assert {name: preset(name).alpha for name in PRESETS} == dict.fromkeys(PRESETS, 64.0)


def test_plain_values_round_trip():
    config = preset("paper-llama2-7b")
    assert config_from_mapping(to_plain(config)) == config


def test_identity_ignores_execution_options_and_rounds_only():
    config = RunConfig()
    execution = dataclasses.replace(config, out="elsewhere", devices=1, clients_per_step=4, remat="full", checkpoint_every=3)
    assert identity(execution) == identity(config)
    assert identity(dataclasses.replace(config, rounds=99)) == identity(config)
    assert identity_hash(dataclasses.replace(config, rounds=99)) != identity_hash(config)
    for name, value in {"seed": 1, "rank": 8, "beta": 0.2, "data": "x.json", "dtype": "float32"}.items():
        assert identity(dataclasses.replace(config, **{name: value})) != identity(config)


def test_files_are_named_from_anywhere_and_names_stay(tmp_path, monkeypatch):
    for folder in ("lib/tiny", "inside", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "blob"):
        (tmp_path / "inside" / name).write_text("{}")
    (tmp_path / "inside" / "link.jsonl").symlink_to("blob")
    monkeypatch.chdir(tmp_path / "inside")
    asked = RunConfig(
        model="../lib/tiny",
        data=("a.jsonl", "./*.jsonl", "owner/name:train", "microtasks:train:60", "link.jsonl"),
        test_data="../inside/b.jsonl",
        probe_data=".",
        cache_dir="cache",
        out="run",
    )
    work, found = tmp_path / "inside", anchored(asked)
    assert found.model == str(tmp_path / "lib" / "tiny")
    files = tuple(str(work / name) for name in ("a.jsonl", "*.jsonl"))
    assert found.data == (*files, "owner/name:train", "microtasks:train:60", str(work / "link.jsonl"))
    assert (found.test_data, found.probe_data) == (str(work / "b.jsonl"), str(work))
    assert (found.cache_dir, found.out) == (str(work / "cache"), str(work / "run"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert anchored(found) == found
    from_here = dataclasses.replace(found, model=os.path.relpath(found.model), test_data="../inside/b.jsonl")
    assert identity(from_here) == identity(found)
    assert identity_hash(from_here) == identity_hash(found)
    names = RunConfig(model="meta-llama/Llama-2-7b-hf", data="databricks/databricks-dolly-15k")
    assert anchored(names) == names
    assert anchored(RunConfig(model="bundled")).model == "bundled"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds 0"),
        ({"rounds": "3"}, "rounds '3'"),
        ({"rounds": True}, "rounds True"),
        ({"capacities": (8, 4)}, "ascend"),
        ({"capacities": ()}, "capacities"),
        ({"capacity_schedule": "cubic"}, "capacity_schedule 'cubic' is unknown; choose from geometric"),
        ({"capacity_schedule": "eigengap", "growth": "top-grow"}, "'eigengap' is of growth devft, not top-grow"),
        ({"stages": 0}, "stages 0 is not positive"),
        ({"stage_end": "never"}, "stage_end 'never' is unknown; choose from fixed, plateau"),
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
        ({"targets": ("q", "w")}, "targets q,w"),
        ({"clients_per_step": 0}, "clients_per_step 0"),
        ({"seed": -1}, "seed -1"),
        ({"stage_rounds": (3, 0)}, "stage_rounds"),
        ({"max_nonfinite": 1.0}, "max_nonfinite"),
        ({"evaluate_every": -1}, "evaluate_every"),
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


def test_a_flag_is_not_taken_for_a_value():
    with pytest.raises(InputError, match="--config needs a value"):
        parse_run(["--config", "--rounds", "3"])


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


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


@pytest.mark.parametrize(
    ("change", "words"),
    [({"head_rovs": 1}, "the option 'head_rovs' does not exist"), ({"rounds": [7]}, "rounds"), ({"alpha": None}, "alpha")],
)
def test_a_damaged_option_of_a_stored_run_is_named_with_its_file(tmp_path, change, words):
    with pytest.raises(
        InputError, match=rf"{tmp_path}/config.json is not as this version writes it \(.*{words}.*restore it"
    ):
        stored_config(to_plain(RunConfig()) | change, tmp_path)

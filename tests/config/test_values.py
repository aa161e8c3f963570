"""What people write, as the type of an option: alike behind a flag, in a file, in an arm."""

import dataclasses
import json

import pytest

from devft_jax.commands.run import parse_run
from devft_jax.comparing.arms import parse_arm
from devft_jax.config.files import config_from_mapping, read_config
from devft_jax.config.run_config import RunConfig
from devft_jax.config.values import as_words, convert, from_words
from devft_jax.errors import InputError


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("capacities", "4,8,16", (4, 8, 16)),
        ("capacities", "4, 8, 16,", (4, 8, 16)),
        ("capacities", "4 8 16", (4, 8, 16)),
        ("capacities", "[4, 8, 16]", (4, 8, 16)),
        ("capacities", "4", (4,)),
        ("capacities", "none", None),
        ("capacities", "null", None),
        ("learning_rate", "1e-4", (1e-4,)),
        ("learning_rate", "[1e-6, 1E-5]", (1e-6, 1e-5)),
        ("learning_rate", ".5", (0.5,)),
        ("targets", "[q, v]", ("q", "v")),
        ("targets", "q, v", ("q", "v")),
        ("rounds", "1e3", 1000),
        ("rounds", "40.0", 40),
        ("weight_decay", "1e-2", 0.01),
        ("evaluate_full", "yes", True),
        ("evaluate_full", "On", True),
        ("evaluate_full", "TRUE", True),
        ("evaluate_full", "no", False),
        ("evaluate_full", "off", False),
        ("compile_ahead", "off", "off"),
        ("compile_ahead", "ON", "on"),
        ("beta", "auto", "auto"),
        ("beta", "2e-1", 0.2),
        ("devices", "null", None),
        ("data_limit", "None", None),
        ("data", "a.jsonl,b.jsonl", ("a.jsonl", "b.jsonl")),
        ("data", "[a.jsonl, b.jsonl]", ("a.jsonl", "b.jsonl")),
        ("data", "a.jsonl", "a.jsonl"),
        ("algorithm", "FedSA-LoRA", "fedsa-lora"),
        ("growth", "DevFT", "devft"),
    ],
)
def test_a_text_means_the_same_behind_a_flag_and_in_a_file(tmp_path, option, text, value):
    flag = f"--{option.replace('_', '-')}"
    for name, content in (
        ("plain.yaml", f"{option}: {text}"),
        ("quoted.yaml", f'{option}: "{text}"'),
        ("run.json", json.dumps({option: text})),
    ):
        (tmp_path / name).write_text(content)
        assert getattr(read_config(tmp_path / name), option) == value
    assert getattr(parse_run([flag, text]), option) == value
    assert getattr(parse_run([f"{flag}={text}"]), option) == value


def test_an_arms_values_are_read_alike():
    found = parse_arm("FedIT+DevFT:capacities=4/16:beta=2e-1:compile-ahead=off:gauge_alignment=yes:devices=none")
    assert (found.algorithm, found.growth) == ("fedit", "devft")
    overrides = {"capacities": (4, 16), "beta": 0.2, "compile_ahead": "off", "gauge_alignment": True, "devices": None}
    assert found.overrides == overrides


@pytest.mark.parametrize(
    ("values", "changes"),
    [
        ({"evaluate_full": True, "rounds": 7.0, "alpha": 8}, {"evaluate_full": True, "rounds": 7, "alpha": 8.0}),
        ({"fields": {"instruction": 1, "output": True}}, {"fields": {"instruction": "1", "output": "true"}}),
        ({"data": [1, "b"]}, {"data": ("1", "b")}),
        ({"data": 2024}, {"data": "2024"}),
        ({"capacities": [2.0, "4"], "learning_rate": 1}, {"capacities": (2, 4), "learning_rate": (1.0,)}),
        ({"devices": None, "fields": None}, {}),
    ],
)
def test_plain_values_become_the_options_types(values, changes):
    config = config_from_mapping(values)
    assert config == dataclasses.replace(RunConfig(), **changes)
    assert all(type(getattr(config, name)) is type(value) for name, value in changes.items())


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"rounds": "many"}, "rounds 'many' is not a whole number; correct it."),
        ({"rounds": 1.5}, "rounds 1.5 is not a whole number"),
        ({"rounds": True}, "rounds True is not a whole number"),
        ({"rounds": None}, "rounds None is not a whole number"),
        ({"rounds": "9" * 5000}, "rounds '9999"),
        ({"rounds": [1]}, r"rounds \[1\] is not a whole number"),
        ({"alpha": "1e"}, "alpha '1e' is not a number such as 0.1 or 1e-4"),
        ({"evaluate_full": "maybe"}, "evaluate_full 'maybe' is not true or false"),
        ({"evaluate_full": 3}, "evaluate_full 3 is not true or false"),
        ({"capacities": "4,,8"}, "capacities '4,,8' has an empty item"),
        ({"capacities": "4,x"}, "capacities '4,x' is not whole numbers such as 4,8,16 or none"),
        ({"compile_ahead": "often"}, "compile_ahead 'often' is not auto or on or off"),
        ({"fields": "a"}, "fields 'a' is not names with values"),
        ({"model": {"a": 1}}, "model {'a': 1} is not text"),
        ({"model": "a\x1b"}, None),
    ],
    ids=str,
)
def test_other_values_are_one_sentence(values, sentence):
    if sentence is None:
        assert config_from_mapping(values).model == "a\x1b"
        return
    with pytest.raises(InputError, match=sentence) as caught:
        config_from_mapping(values)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


def test_several_files_in_every_way_that_a_shell_gives_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    both = ("a.jsonl", "b.jsonl")
    for words in (
        ["--data", "a.jsonl,b.jsonl"],
        ["--data", "a.jsonl", "b.jsonl"],
        ["--data", "a.jsonl", "--data", "b.jsonl"],
        ["--data=a.jsonl", "--seed", "3", "--data=b.jsonl"],
        ["--data", '["a.jsonl", "b.jsonl"]'],
    ):
        assert parse_run(words).data == both
    assert parse_run(["--capacities", "4", "8", "16", "--rounds", "9"]).capacities == (4, 8, 16)
    assert parse_run(["--learning-rate", "1e-3,1e-4", "1e-5"]).learning_rate == (1e-3, 1e-4, 1e-5)
    assert parse_run(["--fields", "instruction", "ask", "--fields", "output", "say"]).fields == {
        "instruction": "ask",
        "output": "say",
    }


def test_a_file_with_a_comma_in_its_name_is_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b.jsonl").touch()
    assert parse_run(["--data", "a,b.jsonl"]).data == "a,b.jsonl"
    assert parse_run(["--data", "a,*.jsonl"]).data == "a,*.jsonl"
    assert parse_run(["--data", "a,b.jsonl", "c.jsonl"]).data == ("a,b.jsonl", "c.jsonl")
    assert parse_run(["--data", '"x,y.jsonl"']).data == "x,y.jsonl"
    # What a run's folder holds is exact, wherever it is read.
    assert config_from_mapping({"data": "x,y.jsonl", "test_data": "none"}, exact=True) == RunConfig(
        data="x,y.jsonl", test_data="none"
    )


def test_words_come_back_for_every_kind():
    cases = [(("a", "b,c"), tuple[str, ...]), (None, int | None), (1e-7, float), ((), tuple[int, ...] | None)]
    for value, kind in cases:
        assert from_words("x", as_words(value, kind), kind) == value


@pytest.mark.parametrize("text", ["1e-400", "0.5e-999", "-3E-400"])
def test_a_number_too_small_to_be_one_is_not_taken_for_zero(text):
    with pytest.raises(InputError, match=f"x {text} is so small that it would be read as 0"):
        convert("x", text, float)
    assert convert("x", "0.0e5", float) == 0

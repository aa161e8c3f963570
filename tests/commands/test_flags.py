"""A command's words: one sentence for each mistake, and the help."""

import dataclasses
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.commands.compare import parse_compare
from devft_jax.commands.flags import ELSEWHERE, Section, flags_of, help_text, parse
from devft_jax.commands.generate import parse_generate
from devft_jax.commands.run import parse_run
from devft_jax.config.run_config import OPTION_GROUPS, field_types
from devft_jax.config.validation import validate
from devft_jax.errors import InputError
from devft_jax.options import operand


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--round", "3"], "devft run has no option --round; did you mean '--rounds'?"),
        (["run", "--lr", "1e-4"], "devft run has no option --lr; here it is called --learning-rate."),
        (["run", "--num_rounds=4"], "devft run has no option --num_rounds; here it is called --rounds."),
        (["report", "--lr", "1"], "devft report has no option --lr; see `devft report --help`."),
        (["run", "--zzz"], "devft run has no option --zzz; see `devft run --help`."),
        (["run", "-r", "3"], "devft run has no option -r; see `devft run --help`."),
        (["run", "--rounds"], "--rounds needs a value; write it after the flag."),
        (["run", "--rounds", "--seed", "3"], "--rounds needs a value"),
        (["run", "--rounds", "3", "--rounds", "3"], "--rounds is given twice and takes one value; give it once"),
        (["run", "--preset", "demo", "--preset", "demo"], "--preset is given twice"),
        (["run", "--rounds", "3", "4"], "'4' follows --rounds, which takes one value"),
        (["run", "demo"], "'demo' belongs to no option"),
        (["run", "--fields", "a", "b", "c"], "fields has 3 words; write names and values in pairs."),
        (["run", "--fields", "a", "b", "a", "c"], "fields names the same thing twice"),
        (["run", "--capacities", "none", "4"], "capacities has none beside other values"),
        (["run", "--seed", "x\x1b[31m"], "seed 'x\\x1b[31m' is not a whole number"),
        (["run", "--out", ""], "out is empty"),
        (["run", "--out", "a\udcff"], "out 'a\\udcff' is not UTF-8 text"),
        (["run", "--out", "a" * 300], "is too long for a file name"),
        (["run", "--out", "~nobody-here/x"], "begins with an unknown home folder"),
        (["run", "--config", "~nobody-here/x"], "begins with an unknown home folder"),
        (["export", "a\0b", "--out", "x"], "source 'a\\x00b' contains a NUL character"),
        (["report", ""], "folder is empty"),
        (["compare", "--arms-file", "a\0b"], "arms_file 'a\\x00b' contains a NUL character"),
        (["generate", "x", "--file", ""], "file is empty"),
        (["generate", "x", "--prompt", "a\udcff"], "prompt 'a\\udcff' is not UTF-8 text"),
        (["compare", "--seed", "3"], "devft compare has no option --seed; did you mean '--seeds'?"),
        (["replay", "x", "--client", "a"], "devft replay needs --round, the round, counted from 1; see"),
        (["report", "a", "b"], "'b' follows FOLDER, which takes one value"),
        (["list", "all"], "algorithm, growth or channel 'all' is unknown; choose from fedit, flora"),
        (["list", "fedit", "flora"], "'flora' follows NAME, which takes one value"),
        (["trian"], "the command 'trian' does not exist; choose from"),
        (["plna"], "the command 'plna' does not exist; did you mean 'plan'?"),
        (["run", "--preset", "dmo"], "(did you mean 'demo'?)."),
        (["run", "--algorithm", "fedlt"], "algorithm 'fedlt' is unknown"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence(capsys, words, sentence):
    assert run_command(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("devft: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.err[:-1].isprintable()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank", 10**6),
        ("clients", 10**12),
        ("clients_per_round", 10**12),
        ("rounds", 10**12),
        ("batch_size", 10**9),
        ("local_steps", 10**12),
        ("max_length", 10**12),
        ("data_limit", 10**30),
        ("capacities", "1,1000000000000"),
        ("capacities", ",".join(map(str, range(1, 20_000)))),
        ("stage_rounds", "1,1000000000000"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_sizes_that_no_run_has_are_answered_at_once(capsys, option, value):
    assert run_command(["plan", "--preset", "demo", f"--{option.replace('_', '-')}", str(value)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"devft: {option} ")
    assert "or less" in said or "or fewer" in said
    assert len(said) < 200


def test_booleans_and_texts_take_what_follows_them():
    assert parse_run(["--evaluate-full", "--rounds", "3"]).evaluate_full is True
    assert parse_run(["--evaluate-full", "false"]).evaluate_full is False
    assert parse_run(["--evaluate-full=yes"]).evaluate_full is True
    assert parse_run(["--weight-decay", "-1"]).weight_decay == -1.0
    asked = parse_generate(["--compare", "bundled", "--stop", ",", "--stop", "none", "--prompt", '"a" none'])
    assert (asked.source, asked.prompts.compare, asked.prompts.prompt) == ("bundled", True, '"a" none')
    assert asked.generation.stop == (",", "none")
    assert parse_generate(["x", "--prompt=--a"]).prompts.prompt == "--a"


def test_the_help_opens_with_what_most_people_need_and_has_every_option_once(capsys):
    for words in (["run", "--help"], ["run", "--rounds", "x", "-h"]):
        with pytest.raises(SystemExit) as ended:
            run_command(words)
        assert ended.value.code == 0
    text = capsys.readouterr().out.split("usage: ")[1]
    first = text.split("most used:")[1].split("\n\n")[0]
    assert first.count("\n  --") == 11
    for name in ("preset", "config", "model", "data", "algorithm", "growth", "rounds", "out"):
        assert f"\n  --{name} " in first
    lines = text.splitlines()
    for group in OPTION_GROUPS:
        for field in dataclasses.fields(group):
            flag = f"  --{field.name.replace('_', '-')}"
            assert sum(line == flag or line.startswith(f"{flag} ") for line in lines) == 1
    assert max(map(len, lines)) <= 110


def test_the_help_groups_options_by_the_methods_that_read_them(capsys):
    with pytest.raises(SystemExit):
        run_command(["run", "--help"])
    sections = {part.split(":")[0]: part for part in capsys.readouterr().out.split("\n\n")}
    for title, flag in {
        "algorithm fedprox": "--prox-mu",
        "algorithm hetlora": "--rank-shrink",
        "algorithms flora, hetlora, flexlora": "--client-ranks",
        "algorithms flasc, fedavgm, fedadagrad, fedyogi, fedadam": "--server-tau",
        "growth devft": "--fusion",
        "growth progfed": "--warmup-rounds",
        "growths devft, progfed, skip-grow, top-grow": "--stages",
    }.items():
        assert f"\n  {flag} " in sections[title]
    shared = " ".join(sections["algorithms flasc, fedavgm, fedadagrad, fedyogi, fedadam"].split())
    assert "(the paper). Read by fedyogi and fedadam. (default: momentum)" in shared


def test_a_preset_is_named_once(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("preset: Demo\nrounds: 5\n")
    assert parse_run(["--config", str(tmp_path / "run.yaml")]).rounds == 5
    assert run_command(["run", "--preset", "demo", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "names a preset, and so does --preset; give one" in capsys.readouterr().err


def test_words_without_a_flag_may_be_a_list():
    """All of them, also behind flags that take one value; the help shows that there may be several."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        sources: tuple[str, ...] = operand(path=True)
        """What is opened."""
        limit: int = 3
        """How many."""

    sections = [Section("options", flags_of(Options))]
    assert parse("devft open", "Opens.", sections, ["a", "--limit", "2", "b,c"]) == {
        "sources": ("a", "b", "c"),
        "limit": 2,
    }
    assert help_text("devft open", "Opens.", sections).startswith("usage: devft open SOURCES ... [options]")
    with pytest.raises(InputError, match="devft open needs SOURCES, what is opened"):
        parse("devft open", "Opens.", sections, [])


def test_arms_and_seeds_may_be_several_words():
    options = parse_compare(
        ["--arms", "fedit", "fedit+devft:capacities=4/16", "--seeds", "0", "1", "--budget", "rounds,bytes"]
    )[1]
    assert (options.arms, options.seeds) == (("fedit", "fedit+devft:capacities=4/16"), (0, 1))
    assert options.budget == ("rounds", "bytes")


def test_the_file_of_the_guide_is_one(tmp_path):
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "your_model_and_data.md").read_text()
    content = textwrap.dedent(guide.split("```yaml\n")[1].split("```")[0])
    (tmp_path / "run.yaml").write_text(content)
    config = parse_run(["--config", str(tmp_path / "run.yaml"), "--rounds", "3"])
    validate(config)
    assert (config.data, config.capacities) == (("clients/a.jsonl", "clients/b.jsonl"), (3, 6, 12, 24))
    assert (config.learning_rate, config.rounds, config.evaluate_full) == ((1e-4,), 3, True)


def test_many_clients_in_many_rounds_are_answered_at_once(capsys):
    assert run_command(["plan", "--rounds", "100000", "--clients", "1000", "--clients-per-round", "1000"]) == 2
    said = capsys.readouterr().err
    assert (
        "rounds 100000 with clients_per_round 1000 give 100,000,000 trainings of a client; use 10,000,000 or fewer." in said
    )
    assert run_command(["compare", "--arms", "fedit", "--seeds", ",".join(map(str, range(20_000)))]) == 2
    assert capsys.readouterr().err == "devft: seeds has 20,000 values; give 10,000 or fewer.\n"


@pytest.mark.parametrize("words", [["--preset", "demo", "--help"], ["--help", "--preset=Demo"]])
def test_the_help_of_a_preset_shows_its_values(words, capsys):
    for command in ("run", "plan", "compare"):
        with pytest.raises(SystemExit):
            run_command([command, *words])
        shown = " ".join(capsys.readouterr().out.split())
        assert "(default: microtasks:train:6000)" in shown
        assert "(default: 0.006)" in shown


def test_the_help_of_an_unknown_preset_says_so(capsys):
    assert run_command(["run", "--preset", "dmo", "--help"]) == 2
    assert "did you mean 'demo'?" in capsys.readouterr().err


def test_names_of_other_tools_lead_to_options_that_exist():
    assert set(ELSEWHERE.values()) <= set(field_types())
    assert not set(ELSEWHERE) & set(field_types())

"""What the demo compares and what it says of the numbers; the runs themselves are `make demo`."""

import dataclasses
import json
import shutil
import sys
from xml.etree import ElementTree

import pytest

from devft_jax.config.identity import identity
from devft_jax.config.presets import preset
from devft_jax.config.validation import validate
from devft_jax.reporting.table import table
from devft_jax.storage.records import RunRecord, SecondsRecord
from devft_jax.training.run import Run
from experiments.demo import (
    CENTRAL,
    DEVFT,
    EQUAL_BYTES,
    FEDIT,
    LOCAL,
    comparison,
    equal_byte_rounds,
    loss_by_megabytes,
    methods,
    own_command,
    picture,
    result_rows,
    stage_rows,
    verdict,
)
from tests.reporting.stories import write_story
from tests.run_records import run_record, stage_record

LAYERS = 16


def summary(loss, accuracy=0.1, *, bytes_up=1000, flops=10**12, stages=None):
    return run_record(
        final_loss=loss,
        accuracy=accuracy,
        base_loss=5.0,
        base_accuracy=0.0,
        rounds=4,
        bytes_up=bytes_up,
        bytes_stage=0,
        train_flops=flops,
        seconds=SecondsRecord(train=61, compile=2, build=0, evaluate=0),
        stages=stages or [stage_record(rounds=4, loss_full_after_transfer=loss)],
    )


def results(**changes):
    found = {
        LOCAL: summary(4.0, 0.01, bytes_up=0),
        FEDIT: summary(2.0, 0.3),
        DEVFT: summary(3.0, 0.1, bytes_up=470, flops=5 * 10**11),
        EQUAL_BYTES: summary(2.5, 0.2, bytes_up=470),
        CENTRAL: summary(1.0, 0.5, bytes_up=0),
    }
    return {**found, **changes}


def test_every_method_is_valid_and_differs_only_in_what_it_is_about():
    config = preset("demo")
    found = methods(config)
    assert list(found) == [LOCAL, FEDIT, DEVFT, EQUAL_BYTES, CENTRAL]
    assert len({method.folder for method in found.values()}) == 5
    for name, method in found.items():
        validate(method.config)
        mine, theirs = identity(method.config), identity(config)
        own = {"growth", "algorithm", "learning_rate"} if name == CENTRAL else {"growth", "algorithm"}
        assert {field for field in mine if mine[field] != theirs[field]} <= own
    rounds = {name: method.config.rounds for name, method in found.items()}
    assert rounds.pop(EQUAL_BYTES) == equal_byte_rounds(config)
    assert set(rounds.values()) == {config.rounds}


def test_equal_bytes_are_the_mean_depth_of_the_stages():
    # 2, 4, 8 and 16 layers for a quarter of the rounds each, of 16.
    assert equal_byte_rounds(preset("demo")) == round(preset("demo").rounds * (2 + 4 + 8 + 16) / 4 / 16)


@pytest.mark.parametrize(
    ("devft", "expected"),
    [
        (summary(3.0, 0.1), "FedIT ends at a lower held-out loss than DevFT, 2.000 against 3.000, with 30.0% against 10.0%"),
        (summary(1.5, 0.4), "DevFT ends at a lower held-out loss than FedIT, 1.500 against 2.000, with 40.0% against 30.0%"),
        (
            summary(1.5, 0.2),
            "DevFT ends at a lower held-out loss than FedIT, 1.500 against 2.000, but with 20.0%",
        ),
        (summary(2.0001, 0.2), "FedIT and DevFT end at the same held-out loss, 2.000"),
    ],
)
def test_a_comparison_follows_the_numbers(devft, expected):
    assert expected in comparison(FEDIT, DEVFT, results(**{DEVFT: devft}))


def test_the_verdict_is_computed():
    at_rounds, at_bytes, reached, seed = verdict(results())
    assert not any("upper bound" in sentence for sentence in verdict(results()))
    assert "not an upper bound" in verdict(results(**{FEDIT: summary(0.9)}))[3]
    assert at_rounds.startswith("At equal rounds FedIT ends at a lower held-out loss than DevFT")
    assert at_rounds.endswith("DevFT sends 47% of FedIT's bytes and computes 50% of its FLOPs.")
    assert at_bytes.startswith("At equal bytes FedIT ends at a lower held-out loss than DevFT, 2.500")
    assert reached.endswith("they reach: local-only 25%, FedIT 75%, DevFT 50%.")
    assert "one seed" in seed
    dense = verdict(results(**{DEVFT: dataclasses.replace(summary(3.0), bytes_stage=37_000_000)}))
    assert len(dense) == 5
    assert "DevFT's fused submodels are 37.00 MB more, down, unless clients keep the base model" in dense[2]
    better = verdict(results(**{DEVFT: summary(1.5)}))
    assert better[1].startswith("At equal bytes DevFT ends at a lower held-out loss than FedIT, 1.500")
    assert "does not improve" in verdict(results(**{CENTRAL: summary(6.0)}))[2]


def test_tables_are_aligned():
    lines = table(result_rows(results()))
    assert len(lines) == 7
    assert lines[1].startswith("untuned base")
    assert lines[1].endswith("5.000         0.0%")
    assert len({line.index(loss) for line, loss in zip(lines[2:4], ("4.000", "2.000"), strict=True)}) == 1
    after = {"loss_full_after_transfer": 2.5}
    stages = [
        stage_record(layers=2, assign=[0, 0, 1], group_sizes=[2, 1], loss_start=4, loss_end=3, **after),
        stage_record(layers=3, assign=[0, 1, 2], group_sizes=[1, 1, 1], loss_start=3, loss_end=2, **after),
    ]
    rows = stage_rows(run_record(stages=stages))
    assert [row[1] for row in rows] == ["groups", "2,1", "each layer"]


def invented_run(folder, depths, loss):
    """A run of four rounds that ends at this loss, each of which sends 2 MB."""
    write_story(folder, depth=4, depths=depths, rounds=4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"bytes_up": 2_000_000} | ({"held_out_loss": 9.0 - row["round"]} if "held_out_loss" in row else {})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = json.loads((folder / "summary.json").read_text())
    summary["stages"][0]["loss_full_after_transfer"] = 4.5
    summary["stages"][-1]["loss_full_after_transfer"] = summary["final_loss"] = loss
    (folder / "summary.json").write_text(json.dumps(summary))
    return Run(preset("demo"), folder, None, RunRecord.from_plain(summary, folder))


def test_the_picture_shows_the_full_model_only(tmp_path):
    runs = {
        name: invented_run(tmp_path / str(index), (2, 4) if name == DEVFT else (4,), 3.0 if name == DEVFT else 2.0)
        for index, name in enumerate(results())
    }
    # The submodel's losses within a stage are not the model's.
    assert loss_by_megabytes(runs[DEVFT]) == [(0, 5.5), (4, 4.5), (6, 6.0), (8, 3.0)]
    assert loss_by_megabytes(runs[FEDIT]) == [(0, 5.5), (2, 8.0), (4, 7.0), (6, 6.0), (8, 2.0)]
    drawn = ElementTree.fromstring(picture(runs))
    names = {text.text for text in drawn.findall(".//{*}text")}
    assert {*runs, "untuned base"} <= names
    # Against bytes the same rounds of two methods lie at different places: points stand alone.
    assert not drawn.findall(".//{*}polyline")
    assert len([mark for mark in drawn.findall(".//{*}circle") if mark.get("r") == "4.0"]) == 4


def test_the_last_line_names_a_command_that_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    (folder / "devft").touch()
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    for found, command in ((None, ".venv/bin/devft"), (str(folder / "devft"), "devft"), (sys.prefix, ".venv/bin/devft")):
        monkeypatch.setattr(shutil, "which", lambda name, found=found: found)
        assert own_command() == command
    monkeypatch.chdir("/")
    assert own_command() == str(folder / "devft").removeprefix("/")
    (folder / "devft").unlink()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert own_command() == f"{folder}/python -m devft_jax"

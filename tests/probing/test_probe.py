"""A probe of a tiny model, from the command line to its files."""

import csv
import dataclasses
import json

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.commands.probe import parse_probe
from devft_jax.errors import InputError
from devft_jax.probing.formats import figure, to_plain, to_text
from devft_jax.probing.options import DEFAULT_PLANS, ProbeOptions
from devft_jax.probing.plans import parse_plan
from devft_jax.probing.probe import probe
from devft_jax.reporting import Progress
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)
PLANS = ("devft", "devft:fusion=anchor", "devft:grouping=even_blocks:fusion=anchor", "skip-grow", "top-grow", "progfed")


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    inputs = write_run_inputs(tmp_path_factory.mktemp("inputs"), word_tokenizer)
    return dataclasses.replace(inputs, capacities=None, devices=1)


@pytest.fixture(scope="module")
def found(config):
    return probe(config, ProbeOptions(plans=PLANS, depths=(4, 2), examples=6), progress=QUIET)


def test_the_full_depth_is_the_full_model_and_costs_as_much(found):
    full = found.full
    assert (full.layers, full.alignment, full.gain_per_flop, full.gain_per_byte) == (4, 1.0, 1.0, 1.0)
    for plan in PLANS:
        half, whole = found.of(plan)
        assert (half.layers, whole.layers) == (2, 4)
        assert whole.loss == pytest.approx(full.loss, rel=1e-5)
        assert whole.alignment == pytest.approx(1.0, abs=1e-4)
        assert whole.cost == full.cost
        assert half.cost.flops < full.cost.flops
        assert half.cost.bytes_up * 2 == full.cost.bytes_up
        assert -1 <= half.alignment < 1
        assert half.gain_per_byte == pytest.approx(2 * half.alignment, rel=1e-6)


def test_an_exact_forward_pass_keeps_the_loss_and_runs_all_layers(found):
    half = found.of("top-grow")[0]
    assert half.loss == pytest.approx(found.full.loss, rel=1e-5)
    assert (half.layers, half.depth, half.cost.bytes_stage) == (2, 4, 0)
    assert half.cost.prefix_flops > 0
    fused = found.of("devft")[0]
    assert fused.loss != found.full.loss
    assert fused.cost.bytes_stage > 1000
    assert fused.cost.flops < half.cost.flops


def test_the_text_the_json_the_csv_and_the_figure_show_every_submodel(found, config):
    text = to_text(found)
    assert max(map(len, text.splitlines())) <= 140
    plain = json.loads(json.dumps(to_plain(found)))
    assert [row["plan"] for row in plain["submodels"]] == [plan for plan in PLANS for _ in range(2)]
    assert len(plain["influence"]) == len(plain["gradient_shares"]) == 4
    drawn = figure(found).document()
    for plan in PLANS:
        assert plan in text
        assert plan in drawn
    assert "full model" in text


def test_a_packed_base_is_measured_too(config):
    packed = dataclasses.replace(config, quantization="int8")
    found = probe(packed, ProbeOptions(plans=("devft", "top-grow"), depths=(2,), examples=4), progress=QUIET)
    assert [row.layers for row in found.rows] == [2, 2]
    assert all(-1 <= row.alignment <= 1 for row in found.rows)
    assert found.rows[1].loss == pytest.approx(found.full.loss, rel=1e-4)


def test_repaired_layers_are_measured_with_what_the_repair_costs(config):
    plans = ("devft", "devft:gain_matching=true", "devft:distil_steps=3")
    found = probe(config, ProbeOptions(plans=plans, depths=(2,), examples=4), progress=QUIET)
    plain, matched, distilled = found.rows
    assert len({plain.loss, matched.loss, distilled.loss}) == 3
    assert distilled.cost.server_flops > 0
    assert dataclasses.replace(distilled.cost, server_flops=0) == plain.cost == matched.cost
    assert "costs the server" in to_text(found)


def test_the_command_prints_a_table_and_writes_its_files(config, tmp_path, capsys):
    words = ["probe", config.model, "--data", config.data, "--template", "completion", "--max-length", "16", "--rank", "4"]
    words += ["--plans", "progfed", "--depths", "2", "--examples", "4", "--out", str(tmp_path / "out"), "--devices", "1"]
    assert run_command(words) == 0
    assert "progfed" in capsys.readouterr().out
    assert (tmp_path / "out" / "probe.svg").read_text().startswith("<svg")
    rows = list(csv.DictReader((tmp_path / "out" / "probe.csv").open()))
    assert [row["plan"] for row in rows] == ["full model", "progfed"]
    assert json.loads((tmp_path / "out" / "probe.json").read_text())["examples"] == 4


def test_the_plans_and_depths_have_defaults(config):
    given, options = parse_probe([config.model])
    assert given.model == config.model
    assert options == ProbeOptions()
    for text in DEFAULT_PLANS:
        assert parse_plan(text, given).config.model == config.model
    flagged, _ = parse_probe([config.model, "--similarity", "cka", "--lone-ends"])
    assert parse_plan("devft", flagged).config.similarity == "cka"


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({}, {"depths": (2, 9)}, "depths 2,9 has 9, and the model has 4 layers; use 4 or fewer"),
        ({}, {"depths": (0,)}, "depths 0 is not positive"),
        ({}, {"plans": ()}, "plans is empty"),
        ({}, {"plans": ("devt",)}, "growth 'devt' is unknown"),
        ({}, {"examples": 0}, "examples 0 is not positive"),
        ({"data": "nowhere.json"}, {}, "nowhere.json"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(config, change, options, said):
    with pytest.raises(InputError, match=said):
        probe(dataclasses.replace(config, **change), ProbeOptions(**options), progress=QUIET)


def test_data_without_answers_is_refused(config, tmp_path):
    path = tmp_path / "silent.json"
    path.write_text(json.dumps([{"instruction": "a", "output": ""}, {"instruction": "b", "output": " "}]))
    with pytest.raises(InputError, match="has no answer in any record read; name data with answers"):
        probe(dataclasses.replace(config, data=str(path)), progress=QUIET)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"silent\.json"):
        probe(dataclasses.replace(config, data=str(path)), progress=QUIET)

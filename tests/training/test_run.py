"""Runs end to end on a random tiny model, through the command line and through `train`."""

import dataclasses
import io
import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from devft_jax.commands.cli import run_command
from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import DevFT, Growth, LayerMap
from devft_jax.errors import InputError, RunError
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.lora import adapter_norms
from devft_jax.reporting import Progress, split_chart
from devft_jax.reporting.report_file import read_story, write_report
from devft_jax.storage.split_record import SplitRecord
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import MODEL, adapter_bytes, flags

QUIET = Progress(quiet=True)


def test_a_run_leaves_the_folder_of_the_contract(finished, config):
    folder = finished.folder
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "adapter", "summary.json", "split.json", "split.svg"} <= names
    split = json.loads((folder / "split.json").read_text())
    assert [client["name"] for client in split["clients"]] == ["client_0", "client_1", "client_2"]
    assert sum(client["examples"] for client in split["clients"]) == split["examples"]
    assert (folder / "split.svg").read_text() == split_chart(SplitRecord.from_plain(split, folder))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(finished.summary.to_plain()))
    losses = {"final_loss", "base_loss", "accuracy", "base_accuracy", "rounds", "stages"}
    costs = {"seconds", "bytes_up", "bytes_down", "bytes_stage", "train_flops", "peak_memory_bytes", "peak_memory_source"}
    for name in losses | costs:
        assert summary[name] is not None, name
    assert set(summary["seconds"]) == {"train", "compile", "build", "evaluate"}
    assert summary["energy"]["kwh"] > 0
    assert summary["energy"]["kgco2e"] == summary["energy"]["kwh"] * summary["energy"]["grid_kgco2e_per_kwh"]
    assert [stage["layers"] for stage in summary["stages"]] == [1, 2, 4]
    assert [stage["rounds"] for stage in summary["stages"]] == [2, 2, 2]
    for stage in summary["stages"]:
        assert sum(stage["group_sizes"]) == 4
        assert len(stage["assign"]) == 4
        for name in ("loss_start", "loss_end", "loss_full_after_transfer", "transition_gap", "seconds"):
            assert np.isfinite(stage[name]), name
    assert summary["stages"][-1]["transition_gap"] == 0
    assert summary["stages"][0]["transition_gap"] > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        assert {"loss", "update_norm", "aggregation_error", "bytes_up", "bytes_down", "tokens_per_second"} <= set(row)
        assert len(row["adapter_norms"]) == row["layers"]
        assert min(row["adapter_norms"]) > 0
    assert sum(row["train_flops"] for row in rows) == summary["train_flops"]
    by_depth = [row["program_bytes"] for row in rows[::2]]
    assert 0 < by_depth[0] < by_depth[1] < by_depth[2]
    norms = adapter_norms(finished.adapter)
    np.testing.assert_allclose(rows[-1]["adapter_norms"], norms, rtol=1e-5)


def test_a_run_leaves_its_report(finished):
    folder = finished.folder
    assert not (folder / "record.json").exists()
    assert write_report(folder, folder / "again.html").read_text() == (folder / "report.html").read_text()
    page = (folder / "report.html").read_text()
    assert f"{finished.summary.base_loss:.4f} to {finished.summary.final_loss:.4f}" in page
    assert "finished: 6 rounds" in page
    assert finished.summary.versions["jax"] == jax.__version__
    assert finished.summary.resumed_after == []


def test_bytes_follow_depth_and_the_dense_submodels_are_counted(finished, config):
    per_layer = 4 * (2 * (16 * 4) + 4 * 16 + 4 * 8)  # float32: a and b of q [16, 16] and v [16, 8] at rank 4
    rows = finished.summary.stages
    for stage in rows:
        expected = stage.layers * per_layer * stage.rounds * config.clients_per_round
        assert stage.bytes_up == stage.bytes_down == expected
    assert finished.summary.bytes_up == sum(stage.bytes_up for stage in rows)
    blocks = 4 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16)
    assert [stage.submodel_bytes for stage in rows] == [blocks, 2 * blocks, 0]
    assert finished.summary.bytes_stage % blocks == 0
    assert finished.summary.bytes_stage >= 2 * blocks + 2 * 2 * blocks


def test_training_lowers_held_out_loss(finished):
    assert finished.summary.final_loss < finished.summary.base_loss - 0.1


def test_the_exported_adapter_is_the_runs_adapter(finished):
    imported = import_peft(finished.folder / "adapter", MODEL)
    for name, factors in finished.adapter.lora.items():
        np.testing.assert_array_equal(imported.lora[name].a, factors.a)
        np.testing.assert_array_equal(imported.lora[name].b, factors.b)
    assert float(imported.scale) == float(finished.adapter.scale)


def test_the_run_and_its_adapter_tell_what_ended_answers(finished):
    assert json.loads((finished.folder / "split.json").read_text())["ends_with"] == ["</s>"]
    assert json.loads((finished.folder / "adapter" / "generation_config.json").read_text()) == {"eos_token_id": [2]}


def test_the_command_line_runs_the_same(finished, config, tmp_path, capfd):
    assert run_command(["run", *flags(config, out=str(tmp_path))]) == 0
    assert adapter_bytes(tmp_path) == adapter_bytes(finished.folder)
    text = capfd.readouterr().err
    assert "stage 1/3  1 layer <- 4:  [0-3]\n" in text
    assert "round 6/6" in text
    assert "tokens/s" in text


def test_nothing_stored_depends_on_where_one_stood(config, tmp_path, monkeypatch, capfd):
    """Started with paths relative to one folder, a run is resumed, replayed, asked and exported from another."""
    inputs, elsewhere = Path(config.model).parent, tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(inputs)
    relative = dataclasses.replace(
        config, model="model", data="client_*.json", test_data="./test.json", out=os.path.relpath(tmp_path / "run"), rounds=3
    )
    first = train(relative, progress=QUIET)
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert [stored[name] for name in ("model", "data", "test_data", "out")] == [
        str(inputs / "model"),
        str(inputs / "client_*.json"),
        str(inputs / "test.json"),
        str(tmp_path / "run"),
    ]
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(inputs / "model")
    monkeypatch.chdir(elsewhere)
    name = {field: os.path.relpath(stored[field]) for field in ("model", "data", "test_data", "out")}
    longer = train(dataclasses.replace(relative, rounds=4, **name), progress=QUIET)
    assert (longer.folder, longer.summary.lengthened_after) == (first.folder, 3)
    client = next(item for item in json.loads((tmp_path / "run" / "split.json").read_text())["clients"])["name"]
    assert len(replay(longer.folder, client=client, round=4, progress=QUIET).steps) == config.local_steps
    assert run_command(["generate", "../run", "--prompt", "a", "--max-new-tokens", "2"]) == 0
    assert run_command(["export", "../run", "--out", "merged", "--form", "merged"]) == 0
    assert run_command(["export", "../run/adapter", "--out", "again", "--form", "merged"]) == 0


def test_a_replay_makes_nothing_in_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(InputError, match="holds no run"):
        replay(tmp_path, client="client_0", round=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_runs_history_is_its_metrics(finished):
    lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    assert [row.to_plain() for row in finished.history] == [json.loads(line) for line in lines]
    assert [row.round for row in finished.history] == [1, 2, 3, 4, 5, 6]


def test_trained_parameters_are_told(config, tmp_path):
    told = io.StringIO()
    train(dataclasses.replace(config, rounds=1, growth="end-to-end", out=str(tmp_path)), progress=Progress(told))
    parameters = 4 * (2 * (16 * 4) + 4 * 16 + 4 * 8)
    total = 2 * 64 * 16 + 16 + 4 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24 + 2 * 16)
    assert f"{parameters:,} parameters are trained, {parameters / total:.2%} of the model's" in told.getvalue()
    assert "finished 1 round;" in told.getvalue()


@pytest.mark.slow
def test_a_replay_says_whether_the_client_took_part(finished):
    row = finished.history[2]
    for client in range(3):
        again = replay(finished.folder, client=f"client_{client}", round=3, progress=QUIET)
        assert again.took_part == (client in row.clients)


def test_a_folder_that_does_not_exist_is_not_replayed(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        replay(tmp_path / "typo", client="client_0", round=1, progress=QUIET)
    assert not (tmp_path / "typo").exists()


def test_end_to_end_growth_and_equal_cohorts(finished, config, tmp_path):
    run = train(dataclasses.replace(config, growth="end-to-end", out=str(tmp_path)), progress=QUIET)
    assert [stage.layers for stage in run.summary.stages] == [4]
    assert run.summary.bytes_stage == 0

    def cohorts(folder):
        return [json.loads(line)["clients"] for line in (folder / "metrics.jsonl").read_text().splitlines()]

    assert cohorts(tmp_path) == cohorts(finished.folder)


@pytest.mark.parametrize(
    "transfer", ["anchor_delta", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("anchor_only", "delta"))]
)
def test_every_transfer_runs(config, tmp_path, transfer):
    run = train(dataclasses.replace(config, transfer=transfer, out=str(tmp_path)), progress=QUIET)
    assert run.summary.final_loss < run.summary.base_loss


@pytest.mark.parametrize(
    "change",
    [
        {"grouping": "random", "fusion": "r_one"},
        pytest.param({"grouping": "even_blocks", "fusion": "mean"}, marks=pytest.mark.slow),
        pytest.param({"grouping": "even_strides", "fusion": "anchor"}, marks=pytest.mark.slow),
        pytest.param({"fusion": "sum", "beta": "auto"}, marks=pytest.mark.slow),
    ],
)
def test_every_grouping_and_fusion_runs(config, tmp_path, change):
    run = train(dataclasses.replace(config, out=str(tmp_path), rounds=3, **change), progress=QUIET)
    assert run.finished


@pytest.mark.parametrize("algorithm", ["fedit", pytest.param("local-only", marks=pytest.mark.slow)])
def test_the_full_model_can_be_judged_within_a_stage_as_if_it_ended_there(config, tmp_path, algorithm):
    chosen = dataclasses.replace(config, algorithm=algorithm, schedule="constant", evaluate_every=1, capacities=(2, 4))
    watched = dataclasses.replace(chosen, stage_rounds=(2, 2), evaluate_full=True, out=str(tmp_path / "watched"))
    run = train(watched, progress=QUIET)
    ended = train(dataclasses.replace(chosen, stage_rounds=(1, 1), out=str(tmp_path / "ended")), progress=QUIET)
    first, _, third, _ = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert first["full_loss"] == pytest.approx(ended.summary.stages[0].loss_full_after_transfer, abs=1e-6)
    assert first["full_loss"] != first["held_out_loss"]
    assert third["full_loss"] == third["held_out_loss"]
    measured = [point.round for piece in read_story(run.folder).full_model for point in piece]
    assert measured == [0, 1, 2, 3, 4]
    unwatched = dataclasses.replace(watched, evaluate_full=False, evaluate_every=0, out=str(tmp_path / "unwatched"))
    again = train(unwatched, progress=QUIET)
    assert again.summary.final_loss == run.summary.final_loss


@pytest.mark.slow
def test_chunks_and_devices_change_nothing_but_rounding(config, finished, tmp_path):
    plain = dataclasses.replace(config, optimizer="sgd", learning_rate=(0.5,), capacities=(2, 4), rounds=4)
    results = []
    for index, change in enumerate(
        ({"devices": 1, "clients_per_step": 1}, {"devices": 2, "clients_per_step": 2}, {"devices": 8})
    ):
        run = train(dataclasses.replace(plain, out=str(tmp_path / str(index)), **change), progress=QUIET)
        results.append(run.adapter)
    for other in results[1:]:
        for leaf, same in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(leaf, same, atol=1e-5)


def test_a_growth_of_ones_own_is_one_function(config, tmp_path):
    class LastLayerFirst(Growth):
        def next(self, stage, tree, history, key):
            if stage == 2:
                return None
            if stage == 1:
                assert [row.stage for row in history] == [0, 0]
                return LayerMap.identity(4)
            fuse = np.eye(4, dtype=np.float32)[[0, 3]]
            return LayerMap(fuse=fuse, assign=np.array([0, -1, -1, 1], np.int32), train=np.array([False, True]))

    chosen = dataclasses.replace(config, out=str(tmp_path), stage_rounds=(2, 1))
    run = train(chosen, growth=LastLayerFirst(), progress=QUIET)
    assert [stage.layers for stage in run.summary.stages] == [2, 4]
    with pytest.raises(InputError, match="objects"):
        replay(run.folder, client="client_0", round=1, progress=QUIET)


def test_what_is_no_growth_is_refused_in_one_sentence(config, tmp_path):
    class Plain:
        def next(self, stage, tree, history, key):
            return None

    chosen = dataclasses.replace(config, out=str(tmp_path / "a"))
    for given, words in ((Plain(), "an object of .*Plain"), (DevFT, "the class DevFT"), ("devft", "an object of str")):
        with pytest.raises(InputError, match=f"growth is {words}, not a Growth; pass an instance of a class that inherits"):
            train(chosen, growth=given, progress=QUIET)


def test_a_wrong_map_ends_with_one_sentence_and_a_frozen_row_of_no_layer_runs(config, tmp_path):
    class Doubled(Growth):
        def __init__(self, train):
            self.train = train

        def next(self, stage, tree, history, key):
            fuse = np.eye(4, dtype=np.float32)[[0, 0, 3]]
            assign = np.array([0, -1, -1, 2], np.int32)
            return None if stage else LayerMap(fuse=fuse, assign=assign, train=np.array(self.train))

    chosen = dataclasses.replace(config, stage_rounds=(1,))
    with pytest.raises(RunError, match="stage 1 could not be built: group 1 trains but no layer is assigned"):
        train(dataclasses.replace(chosen, out=str(tmp_path / "a")), growth=Doubled([True, True, True]), progress=QUIET)
    right = Doubled([True, False, True])
    run = train(dataclasses.replace(chosen, out=str(tmp_path / "b")), growth=right, progress=QUIET)
    assert run.summary.stages[0].anchor_coefficients == [1.0, None, 1.0]


def test_replay_repeats_the_rounds_losses(finished):
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    row = rows[4]
    names = ["client_0", "client_1", "client_2"]
    before = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != ".lock"}
    losses = [
        report.loss
        for client in row["clients"]
        for report in replay(finished.folder, client=names[client], round=5, progress=QUIET).steps
    ]
    np.testing.assert_allclose(np.mean(losses), row["loss"], rtol=1e-5)
    assert before == {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.name != ".lock"}


def test_nan_is_named_and_stops_the_run_past_the_share(config, tmp_path, capfd):
    chosen = dataclasses.replace(config, learning_rate=(1e38,))
    with pytest.raises(RunError, match=r"client 'client_\d', stage 1, round 1, step 2: the loss is nan"):
        train(dataclasses.replace(chosen, out=str(tmp_path / "a")), progress=QUIET)
    code = run_command(["run", *flags(chosen, out=str(tmp_path / "b"))])
    assert code == 1
    assert "devft replay" in capfd.readouterr().err
    again = replay(tmp_path / "b", client="client_1", round=1, progress=QUIET)
    assert again.first_break.startswith(
        "client 'client_1', stage 1, round 1, step 2: the first values that are not finite are in loss"
    )
    reports = again.steps
    assert [report.step for report in reports] == [1, 2]
    assert np.isfinite(reports[0].loss)
    assert reports[0].nonfinite == ()
    assert "loss" in reports[1].nonfinite


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"clients_per_round": 4}, "clients_per_round 4 exceeds the 3 clients"),
        ({"capacities": (2, 8)}, "8"),
        ({"capacities": (4, 2)}, "ascend"),
        ({"rounds": 2}, "rounds 2 is fewer than the 3 stages"),
        ({"stage_rounds": (1, 1)}, "stage_rounds names 2 stages"),
        ({"learning_rate": (0.1, 0.2)}, "learning_rate has 2 rates for 3 stages"),
        ({"devices": 99}, "devices 99"),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"data": "/nowhere/*.json"}, "/nowhere"),
        ({"max_length": 2}, "max_length"),
        ({"out": "/proc/nothing"}, "/proc/nothing"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(config, tmp_path, capfd, change, words):
    chosen = dataclasses.replace(config, **{"out": str(tmp_path / "run"), **change})
    assert run_command(["run", *flags(chosen)]) == 2
    error = capfd.readouterr().err
    last = [line for line in error.splitlines() if line.startswith("devft: ")]
    assert len(last) == 1
    assert words in last[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_tokens_outside_the_vocabulary_are_refused(tiny, config, tmp_path):
    small = dataclasses.replace(MODEL, vocabulary=8)
    save_pretrained(tmp_path / "model", small, init_base(jax.random.key(0), small), dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text((tiny / "model" / name).read_text())
    with pytest.raises(InputError, match="vocabulary ends at 7"):
        train(dataclasses.replace(config, model=str(tmp_path / "model"), out=str(tmp_path / "run")), progress=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_broken_base_ends_with_one_sentence(tiny, config, tmp_path):
    base = init_base(jax.random.key(0), MODEL)
    broken = base.replace(blocks=base.blocks.replace(up=base.blocks.up.at[2, 0, 0].set(np.nan)))
    save_pretrained(tmp_path / "model", MODEL, broken, dtype="float32")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text((tiny / "model" / name).read_text())
    chosen = dataclasses.replace(config, model=str(tmp_path / "model"), out=str(tmp_path / "run"), capacities=(2, 4))
    with pytest.raises(RunError, match="stage 1 could not be built"):
        train(chosen, progress=QUIET)


def test_growth_objects_are_told_apart_by_their_fields(config, tmp_path):
    chosen = dataclasses.replace(config, out=str(tmp_path), rounds=2)
    train(chosen, growth=DevFT((2, 4)), progress=QUIET)
    with pytest.raises(InputError, match="objects"):
        train(dataclasses.replace(chosen, rounds=3), growth=DevFT((1, 4)), progress=QUIET)


# ---- stop and resume, with real signals --------------------------------------------------------------------------


@pytest.mark.slow
def test_real_models_and_data(shared, tmp_path):
    config = RunConfig(
        model=str(shared / "models" / "proxy-16l"),
        data=str(shared / "data" / "dolly-15k-fed10" / "local_training_*.json.gz"),
        test_data=str(shared / "data" / "dolly-15k-fed10" / "global_test.json.gz"),
        growth="end-to-end",
        rounds=2,
        local_steps=2,
        batch_size=4,
        max_length=128,
        rank=8,
        learning_rate=(3e-3,),
        out=str(tmp_path),
    )
    run = train(config, progress=QUIET)
    assert run.summary.clients == 10
    assert run.summary.final_loss < run.summary.base_loss


def test_the_adapter_file_holds_contiguous_hugging_face_factors(finished):
    tensors = load_file(finished.folder / "adapter" / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight"
    np.testing.assert_array_equal(tensors[name], np.asarray(finished.adapter.lora["v"].b[2]).T)


def test_load_pretrained_reads_what_the_run_used(tiny):
    assert load_pretrained(tiny / "model").config == dataclasses.replace(MODEL)


@pytest.mark.parametrize("change", [{"data": "absent/*.json"}, {"test_data": "./absent.json"}], ids=str)
def test_data_that_is_not_there_is_told_before_a_model_is_fetched(config, change):
    with pytest.raises(InputError, match=r"data '(.*/absent/\*|./absent)\.json' (matches no file|does not exist)"):
        train(dataclasses.replace(config, model="somebody/no-such-model", **change), progress=QUIET)

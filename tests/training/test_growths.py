"""Growths as runs: how their stages begin and end, and what they leave alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from devft_jax.developmental import Growth, LayerMap, ProgFed
from devft_jax.errors import InputError, RunError
from devft_jax.exporting.export import export
from devft_jax.reporting import Progress
from devft_jax.training.parts import Parts
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import CopiedInRound, write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)
    return dataclasses.replace(written, capacities=(2, 4), rounds=4, devices=1)


def adapter_bytes(run):
    return (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


def rows_of(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


class FirstStage(Growth):
    """A growth up to the end of its first stage."""

    def __init__(self, growth):
        self.growth = growth

    def next(self, stage, tree, history, key):
        return self.growth.next(stage, tree, history, key) if stage == 0 else None


@pytest.mark.slow
def test_stages_end_on_a_plateau_and_a_resumed_run_ends_them_alike(config, tmp_path, capfd):
    chosen = dataclasses.replace(
        config,
        rounds=9,
        capacities=(1, 2, 4),
        stage_end="plateau",
        plateau_rounds=1,
        plateau_improvement=0.9,
        schedule="cosine-per-stage",
        checkpoint_every=1,
        out=str(tmp_path / "whole"),
    )
    whole = train(chosen, progress=CopiedInRound(4, chosen.out, tmp_path / "cut", quiet=False))
    assert "stage 1 ends after 2 of 3 rounds" in capfd.readouterr().err
    assert whole.summary.stage_rounds == [2, 2, 5]
    assert [stage.rounds for stage in whole.summary.stages] == [2, 2, 5]
    assert [stage.planned_rounds for stage in whole.summary.stages] == [3, 3, 5]
    rates = [row["learning_rate"] for row in rows_of(whole)]
    # A stage's cosine has the length that was planned for it, the last one that which it got.
    assert rates[:2] == rates[2:4]
    assert rates[1] == pytest.approx(1e-6 + (rates[0] - 1e-6) * (1 + np.cos(np.pi / 3)) / 2)
    assert rates[5] == pytest.approx(1e-6 + (rates[4] - 1e-6) * (1 + np.cos(np.pi / 5)) / 2)

    again = train(dataclasses.replace(chosen, out=str(tmp_path / "cut")), progress=QUIET)
    assert again.summary.resumed_after == [3]
    assert again.summary.stage_rounds == [2, 2, 5]
    assert adapter_bytes(again) == adapter_bytes(whole)
    assert replay(whole.folder, client="client_0", round=4, progress=QUIET).stage == 2


def test_a_cosine_over_all_rounds_knows_nothing_of_stage_ends(config, tmp_path):
    fixed = dataclasses.replace(config, rounds=6, out=str(tmp_path / "fixed"))
    plateau = dataclasses.replace(
        fixed, stage_end="plateau", plateau_rounds=1, plateau_improvement=0.9, out=str(tmp_path / "plateau")
    )
    rates = [[row["learning_rate"] for row in rows_of(train(each, progress=QUIET))] for each in (fixed, plateau)]
    assert rates[0] == rates[1]


def test_progfed_of_one_block_is_fedit_bit_for_bit(config, tmp_path):
    runs = [
        train(dataclasses.replace(config, growth=growth, stages=1, rounds=2, out=str(tmp_path / growth)), progress=QUIET)
        for growth in ("progfed", "end-to-end")
    ]
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])


def test_progfed_leaves_the_layers_above_its_prefix(config, tmp_path):
    growth = FirstStage(ProgFed(blocks=2))
    run = train(dataclasses.replace(config, stage_rounds=(2,), out=str(tmp_path)), growth=growth, progress=QUIET)
    [stage] = run.summary.stages
    assert (stage.layers, stage.assign) == (2, [0, 1, -1, -1])
    assert stage.submodel_bytes == 8
    for factors in run.adapter.lora.values():
        assert np.abs(factors.b[:2]).min((1, 2)).max() > 0
        assert not np.any(factors.b[2:])


def test_progfed_warms_up_and_grows(config, tmp_path):
    chosen = dataclasses.replace(config, growth="progfed", stages=2, warmup_rounds=1, rounds=7, out=str(tmp_path))
    run = train(chosen, progress=QUIET)
    assert run.summary.stage_rounds == [1, 1, 5]
    assert [stage.layers for stage in run.summary.stages] == [2, 4, 4]
    assert [stage.trained for stage in run.summary.stages] == [None, [2, 3], None]
    assert run.summary.final_loss < run.summary.base_loss


def test_top_grow_trains_the_top_of_the_exact_model(config, tmp_path, capfd):
    chosen = dataclasses.replace(config, growth="top-grow", capacities=(1, 2), out=str(tmp_path))
    run = train(chosen, progress=Progress())
    assert "all 4 layers, of which 2-3 learn" in capfd.readouterr().err
    first, second = run.summary.stages
    assert (first.trained, second.trained) == ([3], [2, 3])
    assert first.loss_start == run.summary.base_loss
    assert run.summary.bytes_stage == 0
    # What travels and what learns is an adapter of one layer, then of two; all four run.
    per_layer = 4 * (2 * (16 * 4) + 4 * 16 + 4 * 8)
    assert [stage.bytes_up for stage in run.summary.stages] == [2 * 2 * per_layer, 2 * 2 * 2 * per_layer]
    assert [(stage.layers, stage.depth) for stage in run.summary.stages] == [(1, 4), (2, 4)]
    assert first.group_sizes == [1]
    assert replay(run.folder, client="client_0", round=3, progress=QUIET).stage == 2
    export(run.folder, tmp_path / "exported", stage=1)
    for factors in run.adapter.lora.values():
        assert not np.any(factors.b[:2])
        assert np.any(factors.b[2:])


@pytest.mark.slow
def test_stored_hidden_states_change_nothing_beyond_rounding(config, tmp_path, capfd):
    chosen = dataclasses.replace(
        config, growth="top-grow", capacities=(1, 2, 4), stage_rounds=(3, 1, 1), rounds=5, batch_size=12
    )
    runs = {}
    for choice in ("off", "auto"):
        each = dataclasses.replace(chosen, prefix_cache=choice, out=str(tmp_path / choice))
        runs[choice] = train(each, progress=Progress())
    # Stage 1 has 144 visits of at most 53 examples, stage 2 has 48 of at least 29; at full depth nothing lies below.
    said = capfd.readouterr().err
    assert "the lowest 3 layers run once for each of" in said
    assert [stage.cached_layers for stage in runs["off"].summary.stages] == [0, 0, 0]
    whole = runs["auto"]
    assert [stage.cached_layers for stage in whole.summary.stages] == [3, 0, 0]
    assert whole.summary.final_loss == pytest.approx(runs["off"].summary.final_loss, rel=1e-4)
    for new, old in zip(jax.tree.leaves(whole.adapter), jax.tree.leaves(runs["off"].adapter), strict=True):
        np.testing.assert_allclose(new, old, atol=2e-3)
    saved = runs["off"].summary.train_flops - whole.summary.train_flops
    assert 0 < saved < runs["off"].summary.train_flops
    assert not [path for path in whole.folder.iterdir() if path.name.startswith("tmp")]


def test_a_run_with_stored_hidden_states_goes_on_bit_for_bit_and_is_replayed(config, tmp_path):
    chosen = dataclasses.replace(
        config, growth="top-grow", capacities=(1, 2), prefix_cache="on", checkpoint_every=1, out=str(tmp_path / "whole")
    )
    whole = train(chosen, progress=CopiedInRound(4, chosen.out, tmp_path / "cut"))
    assert [stage.cached_layers for stage in whole.summary.stages] == [3, 2]
    resumed = train(dataclasses.replace(chosen, out=str(tmp_path / "cut")), progress=QUIET)
    assert resumed.summary.resumed_after == [3]
    assert adapter_bytes(resumed) == adapter_bytes(whole)
    assert resumed.summary.train_flops == whole.summary.train_flops
    for client in ("client_0", "client_1", "client_2"):
        assert replay(whole.folder, client=client, round=4, progress=QUIET).first_break is None


def test_top_grow_of_all_layers_is_fedit_bit_for_bit(config, tmp_path):
    runs = [
        train(dataclasses.replace(config, growth=growth, capacities=(4,), out=str(tmp_path / growth)), progress=QUIET)
        for growth in ("top-grow", "end-to-end")
    ]
    assert adapter_bytes(runs[0]) == adapter_bytes(runs[1])
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), runs[0].adapter.lora, runs[1].adapter.lora))


def test_skip_grow_measures_public_text_and_a_resumed_run_keeps_what_it_measured(config, tmp_path, monkeypatch):
    chosen = dataclasses.replace(
        config, growth="skip-grow", capacities=(2, 3, 4), rounds=6, checkpoint_every=1, out=str(tmp_path / "whole")
    )
    whole = train(chosen, progress=CopiedInRound(2, chosen.out, tmp_path / "cut"))
    influence = whole.summary.block_influence
    assert len(influence) == 4
    assert min(influence) > 0
    middle = 1 if influence[1] >= influence[2] else 2
    assigned = [[layer for layer in range(4) if stage.assign[layer] >= 0] for stage in whole.summary.stages]
    assert assigned == [[0, 3], sorted([0, middle, 3]), [0, 1, 2, 3]]
    assert [stage.submodel_bytes for stage in whole.summary.stages] == [8, 12, 0]
    monkeypatch.setattr(Parts, "block_influence", lambda self: pytest.fail("measured again"))
    resumed = train(dataclasses.replace(chosen, out=str(tmp_path / "cut")), progress=QUIET)
    assert resumed.summary.resumed_after == [1]
    assert adapter_bytes(resumed) == adapter_bytes(whole)


def test_what_layers_are_measured_on_is_named_like_data(config, tmp_path):
    first = dataclasses.replace(config, growth="skip-grow", capacities=(2,), rounds=1, out=str(tmp_path / "a"))
    other = dataclasses.replace(first, probe_data=config.test_data, probe_examples=2, out=str(tmp_path / "b"))
    figures = [train(each, progress=QUIET).summary.block_influence for each in (first, other)]
    assert figures[0] != figures[1]
    with pytest.raises(InputError, match="nothing_here"):
        train(dataclasses.replace(other, probe_data="nothing_here.json", out=str(tmp_path / "c")), progress=QUIET)


def test_layers_are_grouped_by_their_outputs_on_text_which_are_measured_once(config, tmp_path, monkeypatch):
    chosen = dataclasses.replace(
        config,
        capacities=(2, 3),
        rounds=4,
        similarity="cka",
        grouping="contiguous",
        gain_matching=True,
        checkpoint_every=1,
        out=str(tmp_path / "whole"),
    )
    whole = train(chosen, progress=CopiedInRound(2, chosen.out, tmp_path / "cut"))
    first, second = whole.summary.stages
    assert first.similarity == second.similarity
    np.testing.assert_allclose(np.diag(first.similarity), 1.0, atol=1e-4)
    assert min(min(row) for row in first.similarity) >= 0
    assert first.assign == sorted(first.assign)
    monkeypatch.setattr(Parts, "text_similarity", lambda self, kind: pytest.fail("measured again"))
    resumed = train(dataclasses.replace(chosen, out=str(tmp_path / "cut")), progress=QUIET)
    assert resumed.summary.resumed_after == [1]
    assert adapter_bytes(resumed) == adapter_bytes(whole)


def test_a_map_of_another_depth_than_announced_is_refused(config, tmp_path):
    class Deeper(Growth):
        def depths(self, num_layers):
            return (2, 4)

        def next(self, stage, tree, history, key):
            return LayerMap.identity(4)

    chosen = dataclasses.replace(config, growth="devft", rounds=2, stage_rounds=(1, 1), out=str(tmp_path))
    said = "stage 1 could not be built: the growth's map has 4 layers, but its depths announce 2"
    with pytest.raises(RunError, match=said):
        train(chosen, growth=Deeper(), progress=QUIET)

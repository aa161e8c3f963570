"""Distillation of fused layers: what it brings closer, what it leaves alone, and a run with it."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.config.validation import validate
from devft_jax.developmental import LayerMap, StageShape, fuse, fusion_matrix
from devft_jax.errors import InputError
from devft_jax.exporting.export import export
from devft_jax.models.llama import DEFAULT_COMPUTE, hidden_states
from devft_jax.planning.options import PlanOptions
from devft_jax.planning.planner import Planner, make_plan
from devft_jax.planning.text import to_text
from devft_jax.reporting import Progress
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.training.distilling import Distiller, fused_rows, is_distilled, mean_error
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from devft_jax.training.trainer import Trainer
from tests.tiny import CONFIG, random_base, random_examples
from tests.tiny_run import CopiedInRound, adapter_bytes

QUIET = Progress(quiet=True)
ASSIGN = jnp.array([0, 1, 1, 2])
STAGE = LayerMap(fusion_matrix(ASSIGN), ASSIGN)


@pytest.fixture(scope="module")
def base():
    return random_base()


@pytest.fixture
def distilled(config, tmp_path):
    text = tmp_path / "public.json"
    text.write_text(json.dumps([{"instruction": letter, "output": f"{letter} 1"} for letter in "abcdefghij"]))
    return dataclasses.replace(
        config,
        capacities=(3,),
        rounds=2,
        test_data=None,
        distil_steps=2,
        probe_data=str(text),
        checkpoint_every=1,
        out=str(tmp_path / "a"),
    )


def distiller(base, steps):
    return Distiller(
        config=CONFIG,
        compute=DEFAULT_COMPUTE,
        base=lambda: base,
        examples=random_examples(12, seed=0),
        steps=steps,
        rate=3e-3,
        seed=0,
        programs=CompiledPrograms(),
    )


def error(base, blocks, examples):
    tokens, real = jnp.asarray(examples), jnp.ones(examples.shape, bool)
    states = hidden_states(CONFIG, base.replace(blocks=blocks), None, tokens)
    return float(mean_error(states, hidden_states(CONFIG, base, None, tokens), real))


def test_the_error_is_relative_and_padding_does_not_count():
    wanted = jnp.ones((1, 3, 4))
    real = jnp.array([[True, True, False]])
    assert float(mean_error(wanted, wanted, real)) == 0
    assert float(mean_error(0 * wanted, wanted, real)) == pytest.approx(1.0)
    assert float(mean_error(0 * wanted, 5 * wanted, real)) == pytest.approx(1.0)


def test_fused_layers_come_closer_to_the_full_model_and_single_ones_stay(base):
    fused = fuse(STAGE, base.blocks)
    learned = distiller(base, 40)(STAGE, fused)
    others = np.random.default_rng(9).integers(1, CONFIG.vocabulary, (6, 8)).astype(np.int32)
    assert error(base, learned, others) < 0.9 * error(base, fused, others)
    for before, after in zip(jax.tree.leaves(fused), jax.tree.leaves(learned), strict=True):
        np.testing.assert_array_equal(before[jnp.array([0, 2])], after[jnp.array([0, 2])])
    assert not np.array_equal(fused.q[1], learned.q[1])


def test_only_stages_with_fused_layers_are_distilled(base):
    assert is_distilled(STAGE)
    assert not is_distilled(LayerMap.identity(4))
    assert not is_distilled(LayerMap.top(4, 2))
    assert not is_distilled(LayerMap(fusion_matrix(ASSIGN, method="anchor"), ASSIGN))
    made = distiller(base, 5)
    assert made.flops(2) < made.flops(3)
    assert distiller(base, 10).flops(2) == 2 * made.flops(2)


def test_a_run_counts_what_it_costs_and_a_resumed_one_has_the_same_layers(distilled, tmp_path):
    whole = train(distilled, progress=CopiedInRound(2, distilled.out, tmp_path / "b"))
    shutil.copytree(tmp_path / "b", tmp_path / "c")
    [stage] = whole.summary.stages
    [planned] = make_plan(distilled).stages
    assert 0 < stage.server_flops <= planned.server_flops
    resumed = train(dataclasses.replace(distilled, out=str(tmp_path / "b")), progress=QUIET)
    assert resumed.summary.resumed_after == [1]
    assert adapter_bytes(resumed.folder) == adapter_bytes(whole.folder)
    with pytest.raises(InputError, match="the fused layers of stage 1 were distilled in the run and are not stored"):
        export(distilled.out, tmp_path / "small", form="submodel", stage=1)
    Path(distilled.probe_data).write_text(json.dumps([{"instruction": "b", "output": "b 2"}]))
    with pytest.raises(InputError, match=r"the public text of the run in .* has changed since it was started"):
        train(dataclasses.replace(distilled, out=str(tmp_path / "c")), progress=QUIET)


@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_a_stage_has_the_distilled_layers_in_the_form_of_fused_ones(distilled, quantization):
    trainer = Trainer(build_parts(dataclasses.replace(distilled, quantization=quantization), progress=QUIET))
    parts, state = trainer.parts, trainer.begin()
    assert trainer.advance(state, [])
    plain = parts.submodels.fused(state.layer_map, parts.submodels.layers_to_fuse(0))

    def weights(base, row):
        return [np.asarray(leaf[row]) for leaf in jax.tree.leaves(base.blocks)]

    unchanged = [all(map(np.array_equal, weights(plain, row), weights(state.base, row))) for row in range(3)]
    assert unchanged == (~fused_rows(state.layer_map)).tolist()
    assert set(unchanged) == {True, False}
    announced = parts.submodels.shapes(state.layer_map)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state.base) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), announced
    )


def test_the_number_of_devices_changes_nothing(distilled):
    def first_base(devices):
        trainer = Trainer(build_parts(dataclasses.replace(distilled, devices=devices), progress=QUIET))
        state = trainer.begin()
        trainer.advance(state, [])
        return state.base.blocks

    one, two = first_base(1), first_base(2)
    assert (len(one.q.devices()), len(two.q.devices())) == (1, 2)
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_plan_counts_the_server_only_where_layers_are_fused(distilled):
    plan = make_plan(dataclasses.replace(distilled, capacities=(2, 3, 4), rounds=3))
    two, three, full = (stage.server_flops for stage in plan.stages)
    assert 0 < two < three
    assert full == plan.end_to_end.server_flops == 0
    assert Planner(distilled, PlanOptions(), CONFIG).step(StageShape.of(LayerMap.top(4, 2))).server_flops == 0
    assert "distilling fused layers takes the server" in to_text(plan)
    without = make_plan(dataclasses.replace(distilled, distil_steps=0, probe_data=None))
    assert without.total("server_flops") == 0
    assert "distilling" not in to_text(without)


def test_a_base_that_devices_hold_together_is_not_distilled(config):
    with pytest.raises(InputError, match="distil_steps 3 needs the whole base on one device, and model_shards is 2"):
        validate(dataclasses.replace(config, distil_steps=3, model_shards=2, devices=2))

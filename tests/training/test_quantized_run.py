"""Runs on packed bases: what each of the two settings makes of a stage, and that resuming stays exact."""

import dataclasses

import jax
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.quantization import QTensor, quantize_base
from devft_jax.reporting import Progress
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from devft_jax.training.trainer import Trainer
from tests import tiny_run
from tests.tiny_run import CopiedInRound

QUIET = Progress(quiet=True)
MODEL = dataclasses.replace(tiny_run.MODEL, family="qwen2", biases=("q", "k", "v"))


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    """Two stages on a packed base with biases."""
    base = jax.tree.map(lambda leaf: 3 * leaf, init_base(jax.random.key(0), MODEL))
    config = tiny_run.write_run_inputs(tmp_path_factory.mktemp("packed"), word_tokenizer, MODEL, base)
    return dataclasses.replace(config, quantization="nf4", capacities=(2, 4), rounds=4, checkpoint_every=1, devices=1)


def first_stage(config, **changes):
    """The trainer inside its first stage, and that stage's layers."""
    trainer = Trainer(build_parts(dataclasses.replace(config, **changes), progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    return trainer, state, state.base.blocks


def expanded(blocks):
    return {name: np.asarray(getattr(blocks, name).dequantize("float32")) for name in PROJECTIONS}


def fused(state, weight):
    return np.einsum("gl,l...->g...", np.asarray(state.layer_map.fuse), np.asarray(weight))


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_stages_are_fused_from_expanded_weights_and_packed_again(config, kind):
    trainer, state, blocks = first_stage(config, quantization=kind)
    base = trainer.parts.model.base.blocks
    for name, weight in expanded(base).items():
        leaf = getattr(blocks, name)
        assert isinstance(leaf, QTensor)
        assert leaf.kind == kind
        again = quantize_base(trainer.parts.base.replace(blocks=base.replace(**{name: fused(state, weight)})), kind)
        np.testing.assert_allclose(leaf.dequantize("float32"), getattr(again.blocks, name).dequantize("float32"), atol=1e-3)
    np.testing.assert_allclose(blocks.bias["q"], fused(state, base.bias["q"]), atol=1e-6)
    assert state.totals.stages[0].submodel_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(blocks))


def test_fused_layers_may_stay_floats(config):
    trainer, state, blocks = first_stage(config, fused_precision="float")
    for name, weight in expanded(trainer.parts.model.base.blocks).items():
        assert getattr(blocks, name).dtype == "float32"
        np.testing.assert_allclose(getattr(blocks, name), fused(state, weight), atol=1e-6)


@pytest.mark.parametrize("given", [False, True], ids=["from files", "given as an object"])
def test_stages_may_be_fused_from_the_original_weights(config, given):
    options = dataclasses.replace(config, fuse_from="original", fused_precision="float")
    floats = load_pretrained(config.model)
    trainer = Trainer(build_parts(options, model=floats if given else None, progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    assert isinstance(trainer.parts.model.base.blocks.q, QTensor)
    for name in PROJECTIONS:
        original = getattr(floats.base.blocks, name)
        np.testing.assert_allclose(getattr(state.base.blocks, name), fused(state, original), atol=1e-6)


def test_picked_layers_keep_their_codes(config):
    trainer, _, blocks = first_stage(config, fusion="r_one")
    base = trainer.parts.model.base.blocks
    codes = {layer.tobytes() for layer in np.asarray(base.up.code)}
    assert {layer.tobytes() for layer in np.asarray(blocks.up.code)} <= codes


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"fused_precision": "float"}, marks=pytest.mark.slow),
        pytest.param({"fuse_from": "original"}, marks=pytest.mark.slow),
        pytest.param({"quantization": "int8"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_packed_run_learns_and_resumes_bit_for_bit(config, tmp_path, change):
    options = dataclasses.replace(config, out=str(tmp_path / "whole"), **change)
    finished = train(options, progress=CopiedInRound(2, options.out, tmp_path / "cut"))
    assert finished.summary.final_loss < finished.summary.base_loss - 0.1
    resumed = train(dataclasses.replace(options, out=str(tmp_path / "cut")), progress=QUIET)
    assert resumed.summary.resumed_after == [1]
    jax.tree.map(np.testing.assert_array_equal, resumed.adapter, finished.adapter)


def test_a_packed_base_is_smaller_and_near_the_float_one(config):
    found = {}
    for kind in ("none", "int8"):
        trainer = Trainer(build_parts(dataclasses.replace(config, quantization=kind), progress=QUIET))
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.parts.model.base))
        found[kind] = size, trainer.begin().totals.base_loss
    assert found["int8"][0] < 0.6 * found["none"][0]
    assert abs(found["int8"][1] - found["none"][1]) < 0.02


def test_a_given_packed_model_is_taken_as_it_is(config):
    packed = load_pretrained(config.model, quantization="int4")
    assert build_parts(config, model=packed, progress=QUIET).model.base.blocks.q is packed.base.blocks.q


@pytest.mark.parametrize("quantization", [pytest.param("none", marks=pytest.mark.slow), "nf4"])
def test_stages_of_a_given_packed_model_are_packed_like_it(config, quantization):
    packed = load_pretrained(config.model, quantization="int4")
    trainer = Trainer(build_parts(dataclasses.replace(config, quantization=quantization), model=packed, progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    assert {getattr(state.base.blocks, name).kind for name in PROJECTIONS} == {"int4"}


def test_original_weights_of_a_packed_object_are_refused(config):
    packed = load_pretrained(config.model, quantization="int4")
    with pytest.raises(InputError, match=r"fuse_from 'original' needs the model's float weights, .* pass a float"):
        build_parts(
            dataclasses.replace(config, fuse_from="original"),
            model=Model(packed.config, packed.base, packed.tokenizer),
            progress=QUIET,
        )

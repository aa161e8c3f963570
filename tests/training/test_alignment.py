"""The alignment against LoRA's own gradients and against what an exact submodel must give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.developmental import LayerMap, fuse, inherit, layer_map
from devft_jax.models.adapter import Adapter, LoraFactors
from devft_jax.models.llama import DEFAULT_COMPUTE
from devft_jax.models.loss import completion_loss
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.runtime.devices import client_mesh
from devft_jax.training.alignment import alignment, gradient_shares
from devft_jax.training.gradients import Slopes, jit_slope
from tests.tiny import CONFIG, random_base, random_examples

TARGETS = ("q", "v")


def slopes(examples, rows=3, lengths=(8,), devices=1):
    mesh = client_mesh(jax.devices()[:devices])
    return Slopes(
        CONFIG,
        DEFAULT_COMPUTE,
        examples,
        targets=TARGETS,
        lengths=lengths,
        rows=rows,
        mesh=mesh,
        programs=CompiledPrograms(),
    )


@pytest.fixture(scope="module")
def examples():
    return random_examples(5, seed=3)


@pytest.fixture(scope="module")
def base():
    return random_base()


@pytest.fixture(scope="module")
def full(base, examples):
    return slopes(examples)(base, CONFIG.layers)


def submodel(base, stage):
    return base if stage.runs_base else base.replace(blocks=fuse(stage, base.blocks))


def lora_gradient(base, layers, examples, factors):
    """The gradient of b at b = 0, for the given a of each projection, the same in all layers."""
    tokens = np.zeros((len(examples), 8), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for n in range(len(examples)):
        tokens[n, : examples.lengths[n]] = examples.row(n)
        mask[n, examples.prompt_lengths[n] : examples.lengths[n]] = True
    mask[:, 0] = False
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)

    def loss(b, tokens, mask):
        lora = {name: LoraFactors(a=jnp.stack([factors[name]] * layers), b=b[name]) for name in TARGETS}
        return completion_loss(CONFIG, base, Adapter(lora=lora, scale=jnp.float32(2.0)), tokens, mask)

    zeros = {name: jnp.zeros((layers, a.shape[1], CONFIG.projection_shape(name)[1])) for name, a in factors.items()}
    value, gradient = jax.jit(jax.value_and_grad(loss))(zeros, tokens, mask)
    return float(value), jax.tree.map(np.asarray, gradient)


def test_the_alignment_is_that_of_loras_gradients(base, examples, full):
    """With an orthogonal a of full rank nothing is projected away, so both cosines are equal."""
    draw = np.random.default_rng(0)
    factors = {
        name: jnp.asarray(np.linalg.qr(draw.normal(size=(CONFIG.projection_shape(name)[0],) * 2))[0], jnp.float32)
        for name in TARGETS
    }
    stage = layer_map(base.blocks, 2)
    fused = submodel(base, stage)
    loss, of_full = lora_gradient(base, CONFIG.layers, examples, factors)
    _, of_fused = lora_gradient(fused, 2, examples, factors)
    assert full.loss == pytest.approx(loss, rel=1e-5)
    copied = {name: np.asarray(inherit(stage, of_fused[name], np.zeros_like(of_full[name]))) for name in TARGETS}
    one, other = (np.concatenate([tree[name].ravel() for name in TARGETS]) for tree in (of_full, copied))
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    found = alignment(stage, slopes(examples)(fused, 2).gradient, full.gradient, mode="copy")
    assert found == pytest.approx(expected, abs=1e-4)
    assert abs(found) < 0.99


def test_the_exact_models_top_layers_align_as_much_as_they_have_of_the_gradient(base, examples, full):
    shares = gradient_shares(full.gradient)
    assert shares.sum() == pytest.approx(1.0)
    for layers in (1, 3):
        stage = LayerMap.top(CONFIG.layers, layers)
        top = slopes(examples)(base, layers)
        assert top.loss == pytest.approx(full.loss, rel=1e-5)
        found = alignment(stage, top.gradient, full.gradient, mode="copy")
        assert found == pytest.approx(np.sqrt(shares[-layers:].sum()), abs=1e-4)


def test_the_full_model_is_aligned_with_itself_and_a_row_that_does_not_train_gives_nothing(full):
    identity = LayerMap.identity(CONFIG.layers)
    for mode in ("copy", "anchor_only", "delta", "anchor_delta"):
        assert alignment(identity, full.gradient, full.gradient, mode=mode) == pytest.approx(1.0, abs=1e-6)
    still = LayerMap(identity.fuse, identity.assign, jnp.zeros(CONFIG.layers, bool))
    assert alignment(still, full.gradient, full.gradient, mode="copy") == 0.0


def test_rows_lengths_and_devices_change_nothing(base, examples, full):
    for other in (slopes(examples, rows=5), slopes(examples, lengths=(5, 8)), slopes(examples, rows=1, devices=2)):
        found = other(base, CONFIG.layers)
        assert found.loss == pytest.approx(full.loss, rel=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), found.gradient, full.gradient)


def test_devices_do_not_wait_for_each_other(base):
    def zeros(*lead):
        return {name: np.zeros((*lead, CONFIG.layers, *CONFIG.projection_shape(name)), np.float32) for name in TARGETS}

    program = jit_slope(CONFIG, DEFAULT_COMPUTE, client_mesh(jax.devices()[:2]))
    tokens = np.zeros((2, 8), np.int32)
    text = program.lower(base, zeros(), (np.zeros(2, np.float32), zeros(2)), tokens, tokens > 0).compile().as_text()
    assert "num_partitions=2" in text
    assert not any(operation in text for operation in ("all-reduce", "all-gather", "all-to-all", "collective-permute"))

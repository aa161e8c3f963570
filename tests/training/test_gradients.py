"""A stage that begins at its own gradient on public text, measured against plain autodiff, also on packed weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.config.effects import unread
from devft_jax.data import gather_batch, public_examples
from devft_jax.errors import InputError
from devft_jax.federated.gradient_directions import gradient_factors
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.model import Model
from devft_jax.models.loss import completion_loss
from devft_jax.reporting import Progress
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from devft_jax.training.trainer import Trainer

QUIET = Progress(quiet=True)
TARGETS = ("v", "down")


@pytest.fixture(scope="module")
def chosen(config):
    return dataclasses.replace(
        config, initialization="lora-ga", targets=TARGETS, devices=1, probe_data=config.test_data, probe_examples=5, rounds=4
    )


def plain_gradient(trainer, base, corrections):
    """The gradient of the mean loss of all answers' tokens at once."""
    config, model = trainer.parts.config, trainer.parts.model
    examples = public_examples(config.probe_data, config.probe_examples, model.tokenizer, config)
    tokens, mask = gather_batch(examples, np.arange(len(examples)), config.max_length)

    def loss(delta):
        adapter = Adapter(lora={}, scale=jnp.float32(1.0), delta=delta)
        return completion_loss(model.config, base, adapter, jnp.asarray(tokens), jnp.asarray(mask))

    return jax.grad(loss)(corrections)


def begun(config, corrections=None):
    """The trainer inside its first stage, which begins with corrections of all weights at full depth."""
    trainer = Trainer(build_parts(config, progress=QUIET))
    state = trainer.begin()
    if corrections is not None:
        state.full = state.full.replace(delta=corrections)
    trainer.begin_stage(state, [])
    return trainer, state


@pytest.mark.parametrize(
    "choices", [{"growth": "end-to-end"}, {"capacities": (2, 4)}, {"growth": "top-grow", "capacities": (3, 4)}]
)
def test_factors_begin_at_the_gradient_of_what_the_stage_begins_as(chosen, choices):
    rng = np.random.default_rng(0)
    config = dataclasses.replace(chosen, **{"capacities": None, **choices})
    trainer = Trainer(build_parts(config, progress=QUIET))
    learned = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * rng.normal(size=leaf.shape), jnp.float32), trainer.begin().full.delta
    )
    trainer, state = begun(config, learned)
    began = trainer.parts.algorithm.submodel(dataclasses.replace(state.full, delta=learned), state.layer_map).delta
    gradient = plain_gradient(trainer, state.base, began)
    adapter = trainer.parts.algorithm.view(state.server)
    for name in TARGETS:
        wanted = gradient_factors(gradient[name], config.rank)
        found = adapter.lora[name]
        # Directions of nearly equal size may mix, their span with the scales of a step may not.
        products = [np.asarray(each.a) @ np.swapaxes(np.asarray(each.a), 1, 2) for each in (found, wanted)]
        np.testing.assert_allclose(*products, atol=1e-3)
        # The model is what it was.
        added = np.asarray(adapter.delta[name]) + float(adapter.scale) * np.asarray(found.a) @ np.asarray(found.b)
        np.testing.assert_allclose(added, began[name], atol=1e-5)


def test_devices_that_hold_the_base_together_begin_at_the_same_factors(chosen):
    found = []
    for shards in (1, 2):
        config = dataclasses.replace(chosen, growth="end-to-end", devices=2, model_shards=shards)
        trainer, state = begun(config)
        found.append(trainer.parts.algorithm.view(state.server))
    for name in TARGETS:
        spans = [np.asarray(each.lora[name].a) @ np.swapaxes(np.asarray(each.lora[name].a), 1, 2) for each in found]
        np.testing.assert_allclose(*spans, atol=1e-3)


def test_packed_weights_stay_packed_and_the_model_is_the_base(chosen):
    trainer, state = begun(dataclasses.replace(chosen, quantization="int8", growth="end-to-end"))
    zero = jax.tree.map(jnp.zeros_like, state.server.delta)
    gradient = plain_gradient(trainer, state.base, zero)
    adapter = trainer.parts.algorithm.view(state.server)
    for name in TARGETS:
        assert np.abs(gradient[name]).max() > 0
        found, wanted = adapter.lora[name].a, gradient_factors(gradient[name], chosen.rank).a
        np.testing.assert_allclose(found @ found.transpose(0, 2, 1), wanted @ wanted.transpose(0, 2, 1), atol=1e-3)
        added = np.asarray(adapter.delta[name]) + float(adapter.scale) * np.asarray(adapter.lora[name].a) @ np.asarray(
            adapter.lora[name].b
        )
        np.testing.assert_allclose(added, 0.0, atol=1e-5)
    assert jax.tree.leaves(state.base.blocks.q)[0].dtype == jnp.int8


def test_a_run_begins_at_the_loss_of_the_base_and_its_adapter_is_exported(chosen, tmp_path):
    run = train(dataclasses.replace(chosen, growth="end-to-end", rounds=2, out=str(tmp_path)), progress=QUIET)
    assert run.summary.stages[0].loss_start == pytest.approx(run.summary.base_loss, abs=1e-5)
    assert run.summary.final_loss < run.summary.base_loss
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_the_public_text_is_read_whatever_the_growth(chosen):
    for growth in ("end-to-end", "devft", "progfed"):
        own = dataclasses.replace(chosen, growth=growth)
        assert not {"probe_data", "probe_examples"} & set(unread(own))
        assert {"probe_data", "probe_examples"} <= set(unread(dataclasses.replace(own, initialization="lora")))
    with pytest.raises(InputError, match=r"probe_data cannot be read: .*nothing_here"):
        build_parts(dataclasses.replace(chosen, probe_data="nothing_here.json"), progress=QUIET)
    trainer = Trainer(build_parts(chosen, progress=QUIET))
    without = Model(trainer.parts.model.config, trainer.parts.model.base)
    with pytest.raises(InputError, match="the model has no tokenizer"):
        build_parts(chosen, model=without, data=trainer.parts.data, progress=QUIET)

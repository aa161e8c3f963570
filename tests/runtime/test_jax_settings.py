"""What the environment asks of JAX in general changes nothing that is computed."""

import os
import subprocess
import sys
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from devft_jax.commands.jax_setup import require_devices
from devft_jax.developmental import layer_map
from devft_jax.errors import InputError
from devft_jax.models.base import init_base
from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.lora import init_lora
from devft_jax.models.loss import completion_loss
from devft_jax.runtime.devices import usual_arithmetic
from tests.tiny_run import MODEL


@jax.jit
def loss_and_gradient(lora, adapter, base, tokens):
    def loss(lora):
        counted = jnp.ones(tokens.shape, bool).at[:, :3].set(False)
        return completion_loss(MODEL, base, adapter.replace(lora=lora), tokens, counted, key=jax.random.key(2))

    return jax.value_and_grad(loss)(lora)


def computed():
    """Random weights, a loss with its gradient under dropout, a stage's map, drawn tokens."""
    base = init_base(jax.random.key(0), MODEL)
    adapter = init_lora(jax.random.key(1), MODEL, rank=2, alpha=4.0, dropout=0.1)
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12)
    grown = layer_map((base.blocks, adapter.lora), 2, fusion="r_one", key=jax.random.key(3))
    drawn = generate(
        MODEL, base, None, [[1, 5]], options=GenerationOptions(max_new_tokens=4, temperature=2.0), eos_ids=(), tokenizer=None
    )
    found = base, adapter, loss_and_gradient(adapter.lora, adapter, base, tokens), grown
    return jax.device_get(found), drawn[0].tokens


def test_arrays_of_64_bits_change_no_type_and_no_value():
    with jax.enable_x64(False):
        narrow, drawn = computed()
    with jax.enable_x64(True):
        wide, again = computed()
    assert [leaf.dtype for leaf in jax.tree.leaves(wide)] == [leaf.dtype for leaf in jax.tree.leaves(narrow)]
    chex.assert_trees_all_close(narrow, wide, rtol=1e-5, atol=1e-6)
    assert drawn == again


@pytest.mark.parametrize("asked", ["JAX_ENABLE_X64=1", "JAX_DISABLE_JIT=1", "JAX_NUMPY_DTYPE_PROMOTION=strict"])
def test_a_command_sets_what_others_ask_of_jax_aside(asked):
    program = (
        "from devft_jax.commands.jax_setup import configure_jax; configure_jax(); import jax, jax.numpy as jnp;"
        "x = jnp.zeros(1) + jnp.ones(1, jnp.int32); jax.jit(lambda y: print(type(y).__name__))(x); print(x.dtype)"
    )
    name, _, value = asked.partition("=")
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, name: value}, check=True, capture_output=True, text=True
    )
    assert done.stdout.split()[0].endswith("Tracer")
    assert done.stdout.split()[1] == "float32"


def test_a_run_has_the_usual_rules_of_types():
    with jax.numpy_dtype_promotion("strict"), jax.enable_x64(True), usual_arithmetic():
        assert (jnp.ones(3) + jnp.ones(3, jnp.int32)).dtype == jnp.float32


@pytest.mark.parametrize("found", ["cpu", "gpu"])
def test_a_platform_is_not_silently_replaced(monkeypatch, found):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform=found)])
    if found == "gpu":
        require_devices()
        return
    with pytest.raises(InputError, match="JAX_PLATFORMS 'cuda' names a platform that this machine does not have"):
        require_devices()

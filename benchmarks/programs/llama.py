"""A small LLaMA with low-rank adapters in plain JAX, as a user of plain JAX would write it, and a client's training.

Weights and adapters are stacked on the layer axis and run by one scan; the base is shared by all clients, and an adapter is
applied as two small products in addition to the frozen one.

Axis letters: S local steps, B batch, T tokens, L layers, D width, H heads, K key/value heads, E head size, V vocabulary.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from protocol import TARGETS, Program, Work
from safetensors.numpy import load_file

PROJECTIONS = {name: f"self_attn.{name}_proj" for name in TARGETS} | {
    name: f"mlp.{name}_proj" for name in ("gate", "up", "down")
}


class Llama:
    """The model of a work: its configuration and `weights`, a tree of arrays."""

    def __init__(self, work: Work):
        config = json.loads((work.model / "config.json").read_text())
        stored = load_file(work.model / "model.safetensors")
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head_size = config["head_dim"]
        self.epsilon, self.theta = config["rms_norm_eps"], config["rope_theta"]
        self.scale = work.alpha / work.rank

        def stack(name: str, transpose: bool) -> jax.Array:
            layers = [stored[f"model.layers.{layer}.{name}.weight"] for layer in range(config["num_hidden_layers"])]
            return jnp.asarray(np.stack([layer.T if transpose else layer for layer in layers]))

        blocks = {name: stack(module, True) for name, module in PROJECTIONS.items()}
        blocks |= {name: stack(name, False) for name in ("input_layernorm", "post_attention_layernorm")}
        self.weights = {
            "embed": jnp.asarray(stored["model.embed_tokens.weight"]),
            "blocks": blocks,
            "norm": jnp.asarray(stored["model.norm.weight"]),
            "head": jnp.asarray(stored["lm_head.weight"].T),
        }

    def normed(self, x: jax.Array, weight: jax.Array) -> jax.Array:
        """RMSNorm."""
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.epsilon) * weight

    def rotated(self, x: jax.Array) -> jax.Array:
        """Rotary positions of x [B, T, heads, E]."""
        frequencies = self.theta ** (-jnp.arange(0, self.head_size, 2) / self.head_size)
        angles = jnp.arange(x.shape[1])[:, None, None] * jnp.concatenate([frequencies, frequencies])
        left, right = jnp.split(x, 2, axis=-1)
        return x * jnp.cos(angles) + jnp.concatenate([-right, left], axis=-1) * jnp.sin(angles)

    def layer(self, x: jax.Array, block: dict[str, jax.Array], adapters: dict[str, jax.Array]) -> jax.Array:
        """One decoder layer, x [B, T, D]."""

        def project(name: str, x: jax.Array) -> jax.Array:
            return x @ block[name] + self.scale * (x @ adapters[f"{name}.a"]) @ adapters[f"{name}.b"]

        def split(x: jax.Array) -> jax.Array:
            return x.reshape(*x.shape[:2], -1, self.head_size)

        inner = self.normed(x, block["input_layernorm"])
        queries, keys = (self.rotated(split(project(name, inner))) for name in ("q", "k"))
        values = split(project("v", inner))
        mixed = jax.nn.dot_product_attention(queries, keys, values, is_causal=True)
        x = x + project("o", mixed.reshape(*x.shape[:2], -1))
        inner = self.normed(x, block["post_attention_layernorm"])
        return x + (jax.nn.silu(inner @ block["gate"]) * (inner @ block["up"])) @ block["down"]

    def loss(self, weights: Any, adapters: Any, tokens: jax.Array, answer: jax.Array) -> jax.Array:
        """Mean negative log-likelihood of the answer's tokens, tokens i32[B, T], answer bool[B, T]."""

        def step(x: jax.Array, layer: tuple[Any, Any]) -> tuple[jax.Array, None]:
            return self.layer(x, *layer), None

        x, _ = jax.lax.scan(step, weights["embed"][tokens], (weights["blocks"], adapters))
        logits = self.normed(x[:, :-1], weights["norm"]) @ weights["head"]
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        counted = answer[:, 1:]
        return jnp.sum(nll * counted) / jnp.sum(counted)

    def train(self, work: Work, weights: Any, adapters: Any, batches: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        """One client's local steps with a fresh AdamW: (adapters, losses f32[S]) from batches ([S, B, T], [S, B, T])."""
        rule = optax.adamw(
            work.learning_rate, b1=work.beta1, b2=work.beta2, eps=work.epsilon, weight_decay=work.weight_decay
        )

        def step(carry: tuple[Any, Any], batch: tuple[jax.Array, jax.Array]) -> tuple[tuple[Any, Any], jax.Array]:
            adapters, state = carry
            loss, gradients = jax.value_and_grad(self.loss, argnums=1)(weights, adapters, *batch)
            updates, state = rule.update(gradients, state, adapters)
            return (optax.apply_updates(adapters, updates), state), loss

        (adapters, _), losses = jax.lax.scan(step, (adapters, rule.init(adapters)), batches)
        return adapters, losses


class RoundProgram(Program):
    """A round that is one jitted function from `inputs` to the mean adapters and the losses."""

    def __init__(self, whole_round: Callable[..., Any], *inputs: Any):
        self.whole_round, self.inputs = whole_round, jax.device_put(inputs)

    @functools.cached_property
    def program(self) -> Callable[..., Any]:
        """The compiled round; the first round compiles it."""
        return compiled(self.whole_round, *self.inputs)

    def round(self) -> None:
        """One call of the compiled round."""
        self.adapters, self.losses = jax.block_until_ready(self.program(*self.inputs))

    def result(self) -> tuple[dict[str, jax.Array], float]:
        """The means over clients."""
        return self.adapters, float(self.losses.mean())


def compiled(whole_round: Callable[..., Any], *inputs: Any) -> Callable[..., Any]:
    """A round compiled for these inputs.

    Raises:
      MemoryError: its temporaries are larger than the memory that the machine has left.
    """
    program = jax.jit(whole_round).lower(*inputs).compile()
    analysis, free = program.memory_analysis(), available_bytes()
    needed = 0 if analysis is None else analysis.temp_size_in_bytes
    if needed > free:
        raise MemoryError(
            f"the compiled round needs {needed / 1e9:.1f} GB besides its inputs and {free / 1e9:.1f} are free."
        )
    return program


def available_bytes() -> int:
    """Bytes of memory available without swapping."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))

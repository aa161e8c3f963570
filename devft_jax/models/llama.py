"""LLaMA as pure functions over stacked pytrees: one `lax.scan` over the layer axis, nothing merged, nothing copied.

Every per-layer leaf leads with the layer axis `L`, so growing or shrinking a model is linear algebra on that axis and the
forward pass does not know about stages: it runs as many layers as the leaves hold. The frozen `Base`, the trained `Adapter`
and the tokens are three separate arguments; a low-rank update is applied as two small products beside the frozen one
(`x @ W + scale * (x @ a) @ b`), never as `W + a @ b`, because under a `vmap` over clients the merged form would give every
client a private copy of `W`.

Axis letters: B batch, T tokens, L layers, D model width, F feed-forward width, H query heads, K key/value heads,
E head size, r rank, V vocabulary. Linear weights are stored `[in, out]`.

Covers LLaMA 1-3 (Touvron et al. 2023; Grattafiori et al. 2024) and its descendants: RMSNorm, rotary positions with
optional scaling, grouped-query attention, SwiGLU, tied or separate head. What a family changes is a field of `ModelConfig`:
`biases` (Qwen2), `qk_norm` (Qwen3), `sliding_window` (Mistral); `devft_jax.models.huggingface.families` says which
family has which.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from devft_jax.models import attention
from devft_jax.models.attention import Attention, Kernel, inner_products
from devft_jax.models.hypernetwork import HyperAdapter, adapt, generator_of, prompt_shares
from devft_jax.models.shapes import beside

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")

# Names of what the policy "dots" keeps, beside attention's own: outputs of projections, and which elements dropout keeps.
PROJECTED, KEPT = "projection", "dropout"
REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(PROJECTED, KEPT, attention.SAVED),
}


@dataclass(frozen=True)
class RopeScaling:
    """Rescaling of rotary frequencies for long contexts.

    `kind` is "linear" (every frequency divided by `factor`) or "llama3" (long wavelengths divided by `factor`, short ones
    kept, a smooth ramp between, set by the two frequency factors and the original context length in tokens).
    """

    kind: str
    factor: float
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a LLaMA-family model; static under `jit`.

    `family` is the name under which Hugging Face stores it. `biases` names the projections that add a bias. `qk_norm` tells
    that every query and key head is RMS-normalised before its rotation. Under a `sliding_window` of w tokens a position
    attends to itself and the w - 1 before it; None is full causal attention.
    """

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_epsilon: float = 1e-5
    tied_head: bool = False
    max_length: int = 4096
    family: str = "llama"
    biases: tuple[str, ...] = ()
    qk_norm: bool = False
    sliding_window: int | None = None

    def projection_shape(self, name: str) -> tuple[int, int]:
        """`(in, out)` of one of the seven linear projections of a layer."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        shapes = {
            "q": (self.width, queries),
            "k": (self.width, keys),
            "v": (self.width, keys),
            "o": (queries, self.width),
            "gate": (self.width, self.feed_forward),
            "up": (self.width, self.feed_forward),
            "down": (self.feed_forward, self.width),
        }
        return shapes[name]

    def with_layers(self, layers: int) -> "ModelConfig":
        """The same architecture at another depth, as a submodel has it."""
        return dataclasses.replace(self, layers=layers)


@dataclass(frozen=True)
class Compute:
    """How the forward pass is executed; changes speed and memory, not what is computed.

    `dtype` is that of activations and of the weights inside a product ("float32" or "bfloat16"); norms, softmax,
    low-rank factors and the loss stay float32. `remat` names what the backward pass recomputes: "none" keeps all
    activations, "dots" keeps what projections and attention put out, "full" keeps only each layer's input. `attention` names
    the kernel (`devft_jax.models.attention`). `head_rows` is how many tokens' logits the loss holds at once.
    `frozen_layers` is the number of an adapter's lowest layers that take no gradient, so that nothing is kept of them for a
    backward pass and none is run through them.
    """

    dtype: str = "float32"
    remat: str = "none"
    attention: Kernel | Literal["auto"] = "auto"
    head_rows: int = 256
    frozen_layers: int = 0


DEFAULT_COMPUTE = Compute()


class Block(struct.PyTreeNode):
    """The decoder layers of a model, stacked: projections `[L, in, out]`, norms `[L, D]`.

    `bias` maps the projections that have one to theirs, `[L, out]`; `norm_q` and `norm_k` are `[L, E]` where queries and
    keys are normalised, else None.
    """

    q: Any
    k: Any
    v: Any
    o: Any
    gate: Any
    up: Any
    down: Any
    norm_attention: jax.Array
    norm_mlp: jax.Array
    bias: dict[str, jax.Array] = struct.field(default_factory=dict)
    norm_q: jax.Array | None = None
    norm_k: jax.Array | None = None


class Base(struct.PyTreeNode):
    """A frozen model: `embed [V, D]`, stacked `blocks`, final `norm [D]`, `head [D, V]` (None when tied to `embed`).

    Large weights may be opaque: packed, or divided between devices.
    """

    embed: Any
    blocks: Block
    norm: jax.Array
    head: Any


class LoraFactors(struct.PyTreeNode):
    """Low-rank factors of one projection in every layer: `a [L, in, r]` touches the input, `b [L, r, out]` the output."""

    a: jax.Array
    b: jax.Array


class Adapter(struct.PyTreeNode):
    """What is added to a frozen base: `lora` maps projection names to factors, `scale` multiplies their product.

    `scale` is alpha / r, one scalar for all, or a dict with one value per layer `[L]` for each projection, as adapters
    whose rank or alpha varies need it (their factors are padded with zeros to the largest rank). `dropout` is the chance
    of dropping an element of a low-rank product's input while training. `delta` maps projections to dense corrections of
    their frozen weights, f32[L, in, out], for methods that change these from round to round; they are kept beside the
    weights because a packed or half-precision weight would lose a change that is small against it. `hyper` makes bottleneck
    adapters behind every sublayer from the prompt (`devft_jax.models.hypernetwork`).

    An adapter of fewer layers than its base belongs to the last of them.
    """

    lora: dict[str, LoraFactors]
    scale: jax.Array | dict[str, jax.Array]
    dropout: float = struct.field(pytree_node=False, default=0.0)
    delta: dict[str, jax.Array] = struct.field(default_factory=dict)
    hyper: HyperAdapter | None = None

    @property
    def layer_tokens(self) -> jax.Array | None:
        """What tells the hypernetwork its layers apart, f32[L, t]; None without one."""
        return None if self.hyper is None else self.hyper.network.layer_tokens

    def depth(self, otherwise: int) -> int:
        """The layers that it has factors, corrections or tokens for; `otherwise` for one that has none of them."""
        leaves = jax.tree.leaves((self.lora, self.delta, self.layer_tokens))
        return leaves[0].shape[0] if leaves else otherwise


def rotary_frequencies(config: ModelConfig) -> jax.Array:
    """Angular frequencies per position, f32[E / 2] (Su et al. 2021; LLaMA 3 scaling as Hugging Face applies it)."""
    exponents = jnp.arange(0, config.head_size, 2, dtype=jnp.float32) / config.head_size
    frequencies = config.rope_theta**-exponents
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * jnp.pi / frequencies
    turns = scaling.original_length / wavelengths
    span = scaling.high_frequency_factor - scaling.low_frequency_factor
    keep = jnp.clip((turns - scaling.low_frequency_factor) / span, 0.0, 1.0)
    return keep * frequencies + (1 - keep) * frequencies / scaling.factor


def rotary_table(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for `positions` i32[..., T], each f32[..., T, 1, E / 2]."""
    places = positions[..., None, None].astype(jnp.float32)
    angles = places * beside(rotary_frequencies(config), places)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotary position embedding of `x [..., T, heads, E]`, halves paired as in Hugging Face checkpoints."""
    cos, sin = (beside(part, x).astype(x.dtype) for part in table)
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, weight: jax.Array, epsilon: float) -> jax.Array:
    """Root-mean-square normalisation over the last axis in float32, returned in `x`'s dtype."""
    return _rms_forward(x, weight, epsilon)[0]


def _rms_forward(x: jax.Array, weight: jax.Array, epsilon: float) -> tuple[jax.Array, Any]:
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * scale * beside(weight, wide).astype(jnp.float32)).astype(x.dtype), (x, weight, scale)


def _rms_backward(epsilon: float, kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    # With n the normalised x and g the gradient times the weight: scale * (g - n * mean(g * n)).
    x, weight, scale = kept
    normed = x.astype(jnp.float32) * scale
    towards = gradient.astype(jnp.float32) * beside(weight, gradient).astype(jnp.float32)
    if jax.default_backend() == "cpu":
        # Used twice, and itself a sum over the projections that read the norm: the compiler would make that sum twice.
        towards = jax.lax.optimization_barrier(towards)
    along = inner_products(towards, normed) / x.shape[-1]
    by_weight = jnp.sum(gradient.astype(jnp.float32) * normed, axis=tuple(range(x.ndim - 1)))
    return (scale * (towards - normed * along)).astype(x.dtype), by_weight.astype(weight.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


def dense_weight(weight: Any, dtype: jnp.dtype) -> jax.Array:
    """A projection's weight as a float array; opaque weights (4-bit, 8-bit) know how to expand themselves."""
    if hasattr(weight, "dequantize"):
        return weight.dequantize(dtype)
    return weight.astype(dtype)


def read_layer(stacked: Any, index: jax.Array) -> Any:
    """Layer `index` of a tree of leaves [L, ...]."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), stacked)


class StackedWeight(struct.PyTreeNode):
    """A projection of one layer, read out of the stack `[L, in, out]` of all layers when it is used: an opaque weight."""

    stack: Any
    index: jax.Array

    def dequantize(self, dtype: jnp.dtype) -> jax.Array:
        """The layer's weight [in, out] as a float array."""
        return dense_weight(read_layer(self.stack, self.index), dtype)


class ShardedWeight(struct.PyTreeNode):
    """A frozen weight of which the devices along a mesh axis hold a part each: an opaque weight.

    Inside `jax.shard_map` over that axis `part` is a device's own, outside it is the whole. Every use gathers the parts, so
    that all devices along the axis have to come by it; see `devft_jax.models.sharding`.

    Attributes:
      part: a float array or a packed weight. dimensions: for each of its arrays the one that is divided, counted from the
        end. axis: of the mesh.
    """

    part: Any
    dimensions: tuple[int, ...] = struct.field(pytree_node=False)
    axis: str = struct.field(pytree_node=False)

    def gathered(self) -> Any:
        """The weight as it was before it was divided."""
        arrays, structure = jax.tree.flatten(self.part)
        wholes = [
            jax.lax.all_gather(array, self.axis, axis=array.ndim + dimension, tiled=True)
            for array, dimension in zip(arrays, self.dimensions, strict=True)
        ]
        return jax.tree.unflatten(structure, wholes)

    def dequantize(self, dtype: jnp.dtype) -> jax.Array:
        """The weight as a float array; packed weights travel packed."""
        return dense_weight(self.gathered(), dtype)

    def __getitem__(self, rows: jax.Array) -> jax.Array:
        """Rows i32[...] of an embedding [V, D] divided along D: [..., D], without gathering it."""
        assert self.dimensions == (-1,)
        # Every device looks its part up for all of them; rows are few against the embedding.
        found = self.part[jax.lax.all_gather(rows, self.axis)]
        return jax.lax.all_to_all(found, self.axis, split_axis=0, concat_axis=found.ndim - 1, tiled=True)[0]


def frozen_product(x: jax.Array, weight: Any) -> jax.Array:
    """`x [..., in] @ weight [in, out]` in `x`'s dtype.

    An opaque weight is expanded again in the backward pass: kept from the forward pass, the expanded weights of all layers
    would fill the memory that quantising them saved.
    """
    if hasattr(weight, "dequantize"):
        return jax.checkpoint(lambda x, weight: x @ weight.dequantize(x.dtype), prevent_cse=False)(x, weight)
    return x @ weight.astype(x.dtype)


def _drop(keys: jax.Array, rate: float, x: jax.Array) -> jax.Array:
    """Dropout of `x [B, T, D]`, each row by its own of `keys [B]`."""
    # A row's bits follow its flat index, with T leading: padding to more tokens changes no real token's mask.
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, jnp.float32(1.0 - rate), x.shape[1:]))(keys)
    return jnp.where(checkpoint_name(keep, KEPT), x / (1.0 - rate), 0.0)


def fold_each(keys: jax.Array, number: Any) -> jax.Array:
    """`fold_in` of one number into every key of `keys [B]`."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def causal_attention(config: ModelConfig, compute: Compute, length: int) -> Attention:
    """Attention over a whole sequence of `length` tokens; remembers nothing and hands nothing on."""
    kernel = attention.kernel_for(compute.attention, dtype=compute.dtype, head_size=config.head_size, length=length)
    return attention.causal(kernel, length=length, window=config.sliding_window)


def decoder_layer(
    config: ModelConfig,
    x: jax.Array,
    block: Block,
    lora: dict[str, LoraFactors],
    scale: dict[str, jax.Array],
    delta: dict[str, jax.Array],
    *,
    table: tuple[jax.Array, jax.Array],
    attend: Attention,
    memory: Any = None,
    dropout: float = 0.0,
    row_keys: jax.Array | None = None,
    change: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, Any]:
    """One decoder layer.

    Args:
      config: the architecture.
      x: [B, T, D].
      block, lora, scale, delta: of one layer, without the layer axis.
      table: of the rotary positions of the T tokens.
      attend: mixes the values. memory: what it is told of this layer besides.
      dropout: probability of dropping an input element of a low-rank product. row_keys: of the rows [B]; None leaves it off.
      change: of the outputs [B, T, D] of attention and MLP, before they are added to what went in; None leaves them.

    Returns:
      The layer's output [B, T, D], and what `attend` hands on.
    """

    def project(name: str, inputs: jax.Array) -> jax.Array:
        outputs = frozen_product(inputs, getattr(block, name))
        if name in block.bias:
            outputs = outputs + beside(block.bias[name], outputs).astype(outputs.dtype)
        if name in delta:
            outputs = outputs + inputs @ delta[name].astype(inputs.dtype)
        if name not in lora:
            return checkpoint_name(outputs, PROJECTED)
        if row_keys is not None and dropout > 0.0:
            inputs = _drop(fold_each(row_keys, PROJECTIONS.index(name)), dropout, inputs)
        factors = lora[name]
        low = inputs @ factors.a.astype(inputs.dtype)
        # A scale such as 0.7 has no exact half-precision form: it multiplies in float32.
        outputs = outputs + (scale[name] * (low @ factors.b.astype(inputs.dtype))).astype(x.dtype)
        return checkpoint_name(outputs, PROJECTED)

    def heads(y: jax.Array, count: int, norm: jax.Array | None = None) -> jax.Array:
        split = y.reshape(*y.shape[:-1], count, config.head_size)
        return split if norm is None else rms_norm(split, norm, config.norm_epsilon)

    with jax.named_scope("attention"):
        normed = rms_norm(x, block.norm_attention, config.norm_epsilon)
        queries = rotate(heads(project("q", normed), config.heads, block.norm_q), table)
        keys = rotate(heads(project("k", normed), config.kv_heads, block.norm_k), table)
        values = heads(project("v", normed), config.kv_heads)
        mixed, handed_on = attend(queries, keys, values, memory)
        mixed = project("o", mixed.reshape(*x.shape[:-1], -1))
        x = x + (mixed if change is None else change(mixed))
    with jax.named_scope("mlp"):
        normed = rms_norm(x, block.norm_mlp, config.norm_epsilon)
        gated = jax.nn.silu(project("gate", normed)) * project("up", normed)
        mapped = project("down", gated)
        return x + (mapped if change is None else change(mapped)), handed_on


def layer_scales(adapter: Adapter, depth: int) -> dict[str, jax.Array]:
    """The scale of every adapted projection in each of `depth` layers, f32[L]."""
    if isinstance(adapter.scale, dict):
        return adapter.scale
    return {name: jnp.broadcast_to(adapter.scale, (depth,)) for name in adapter.lora}


def hidden_states(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    *,
    compute: Compute = DEFAULT_COMPUTE,
    key: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
    prefix: jax.Array | None = None,
) -> jax.Array:
    """Final normalised hidden states `[B, T, D]` in the compute dtype; the head is left to the caller.

    Args:
      config: the architecture; its `layers` is ignored, the leaves of `base.blocks` set the depth.
      base: frozen weights.
      adapter: of the same depth, or of the last layers alone; None for the bare base.
      tokens: i32[B, T], padded on the right (causal attention keeps padding out of every real token's sight).
      compute: execution choices.
      key: a random key, or one for each row [B], switches LoRA dropout on; None (evaluation) leaves it off. Row b of one key
        draws by fold_in(key, b).
      prompt_lengths: i32[B], tokens before the first of an answer; only an adapter with a hypernetwork needs them.
      prefix: [B, T, D], what the layers below an adapter of the last layers alone make of the tokens (`prefix_states`),
        which are then not run; None runs them. At padding it may hold anything finite.
    """
    length = tokens.shape[-1]
    attend = causal_attention(config, compute, length)
    options: dict[str, Any] = {"compute": compute, "key": key, "prompt_lengths": prompt_lengths, "prefix": prefix}
    hidden, _ = run_layers(config, base, adapter, tokens, jnp.arange(length, dtype=jnp.int32), attend=attend, **options)
    return hidden


def run_layers(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    attend: Attention,
    memory: Any = None,
    compute: Compute = DEFAULT_COMPUTE,
    key: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
    prefix: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """`hidden_states` under any attention, which may remember something of every layer and hand something on.

    Args:
      positions: of the tokens, i32[T] or i32[B, T].
      attend: mixes the values. memory: pytree, leaves [L, ...], whose layers it is given; None for none.

    Returns:
      Hidden states [B, T, D] and what the layers that ran hand on, stacked [L, ...].
    """
    table = rotary_table(config, positions)
    adapter = adapter or Adapter(lora={}, scale=jnp.float32(1.0))
    depth = base.blocks.norm_mlp.shape[0]
    adapted = adapter.depth(otherwise=depth)
    bare = depth - adapted
    if bare < 0:
        raise ValueError(f"the adapter has {adapted} layers and the base {depth}; give an adapter of at most as many.")
    if prefix is not None and bare == 0:
        raise ValueError("the adapter reaches down to the first layer, so no layer runs below it: give no prefix.")

    change_by: Callable[..., jax.Array] | None = None
    if adapter.hyper is not None:
        if prompt_lengths is None:
            raise ValueError("the adapter makes its weights from prompts: give prompt_lengths.")
        change_by = partial(adapt, generator_of(adapter.hyper), prompt_shares(prompt_lengths, tokens.shape[-1]))

    keys = key
    if key is not None and key.ndim == 0:
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(tokens.shape[0], dtype=jnp.int32))

    def layer(x, block, adaptation, remembered, index):
        factors, scales, delta, layer_token = adaptation
        change = None if change_by is None else partial(change_by, layer_token)
        return decoder_layer(
            config,
            x,
            block,
            factors,
            scales,
            delta,
            table=table,
            attend=attend,
            memory=remembered,
            dropout=adapter.dropout,
            row_keys=None if keys is None else fold_each(keys, index),
            change=change,
        )

    policy = REMAT_POLICIES[compute.remat]

    def saving(function: Callable[..., Any]) -> Callable[..., Any]:
        return function if policy is None else jax.checkpoint(function, policy=policy, prevent_cse=False)

    def step(x, given):
        return layer(x, *given)

    def read_step(x, given):
        # The stack is read by number and the adaptation alone is cut: a slice of the stacked weights would be a copy.
        adaptation, index = given
        block, remembered = read_layer((base.blocks, memory), index)
        if policy is None:
            # Kept for the backward pass, the layers read would be that copy; read again by every product, they are not.
            block = block.replace(**{name: StackedWeight(getattr(base.blocks, name), index) for name in PROJECTIONS})
        return layer(x, block, adaptation, remembered, index)

    parts = []
    if prefix is not None:
        x = prefix
    else:
        x = base.embed[tokens].astype(jnp.dtype(compute.dtype))
        if bare:
            x, handed_on = run_bare(config, base, x, bare, table=table, attend=attend, memory=memory)
            parts.append(handed_on)
    adaptation = (adapter.lora, layer_scales(adapter, adapted), adapter.delta, adapter.layer_tokens)
    if bare + compute.frozen_layers == 0:
        x, handed_on = jax.lax.scan(saving(step), x, (base.blocks, adaptation, memory, jnp.arange(depth, dtype=jnp.int32)))
    else:
        # Nothing below the first layer that learns depends on what trains, so it has no backward pass.
        first, numbers = bare + compute.frozen_layers, jnp.arange(depth, dtype=jnp.int32)
        frozen, learning = (
            jax.tree.map(lambda leaf, cut=cut: leaf[cut], adaptation)
            for cut in (slice(compute.frozen_layers), slice(compute.frozen_layers, None))
        )
        for run, adapted_by, part in (
            (read_step, jax.lax.stop_gradient(frozen), numbers[bare:first]),
            (saving(read_step), learning, numbers[first:]),
        ):
            if part.size:
                x, handed_on = jax.lax.scan(run, x, (adapted_by, part))
                parts.append(handed_on)
        handed_on = jax.tree.map(lambda *pieces: jnp.concatenate(pieces), *parts)
    return rms_norm(x, base.norm, config.norm_epsilon), handed_on


def run_bare(
    config: ModelConfig,
    base: Base,
    x: jax.Array,
    layers: int,
    *,
    table: tuple[jax.Array, jax.Array],
    attend: Attention,
    memory: Any = None,
) -> tuple[jax.Array, Any]:
    """The lowest `layers` layers of a base, without an adapter, on [B, T, D]; the rest as in `run_layers`."""

    def step(x: jax.Array, index: jax.Array) -> tuple[jax.Array, Any]:
        # The stack is read by number: cut, it would be a copy of its weights.
        block, remembered = read_layer((base.blocks, memory), index)
        return decoder_layer(config, x, block, {}, {}, {}, table=table, attend=attend, memory=remembered)

    return jax.lax.scan(step, x, jnp.arange(layers, dtype=jnp.int32))


def prefix_states(
    config: ModelConfig, base: Base, tokens: jax.Array, layers: int, *, compute: Compute = DEFAULT_COMPUTE
) -> jax.Array:
    """What the lowest `layers` layers of a base, without an adapter, make of `tokens` i32[B, T].

    The hidden states [B, T, D] that enter the layer above them, in the compute dtype. Those of a real token do not depend on
    the padding behind it.
    """
    length = tokens.shape[-1]
    attend, table = causal_attention(config, compute, length), rotary_table(config, jnp.arange(length, dtype=jnp.int32))
    x = base.embed[tokens].astype(jnp.dtype(compute.dtype))
    return run_bare(config, base, x, layers, table=table, attend=attend)[0]


def head_weight(base: Base) -> jax.Array:
    """The output projection `[D, V]`, which a tied model shares with its embedding."""
    weight = base.embed if base.head is None else base.head
    if isinstance(weight, ShardedWeight):
        weight = weight.gathered()
    return weight.T if base.head is None else weight


def forward(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    *,
    compute: Compute = DEFAULT_COMPUTE,
    key: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
    prefix: jax.Array | None = None,
) -> jax.Array:
    """Logits f32[B, T, V] of `tokens` i32[B, T]; arguments as in `hidden_states`."""
    options: dict[str, Any] = {"compute": compute, "key": key, "prompt_lengths": prompt_lengths, "prefix": prefix}
    return logits_of(base, hidden_states(config, base, adapter, tokens, **options))


def logits_of(base: Base, hidden: jax.Array) -> jax.Array:
    """Logits f32[..., V] of hidden states `[..., D]`."""
    head = head_weight(base).astype(hidden.dtype)
    return jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)


def init_base(key: jax.Array, config: ModelConfig, *, dtype: str = "float32") -> Base:
    """Random weights as for training from scratch: normal with deviation 0.02, residual outputs shrunk by sqrt(2 L).

    Norms are one and biases zero.
    """
    keys = iter(jax.random.split(key, len(PROJECTIONS) + 2))

    def normal(shape: tuple[int, ...], deviation: float = 0.02) -> jax.Array:
        return (deviation * jax.random.normal(next(keys), shape, jnp.float32)).astype(dtype)

    shrunk = 0.02 / (2 * config.layers) ** 0.5
    projections = {
        name: normal(
            (config.layers, *config.projection_shape(name)),
            shrunk if name in ("o", "down") else 0.02,
        )
        for name in PROJECTIONS
    }
    # Two arrays, not one twice: an optimiser step that donates its buffers refuses shared ones.
    norms = [jnp.ones((config.layers, config.width), dtype) for _ in range(2)]
    head_norms = [jnp.ones((config.layers, config.head_size), dtype) if config.qk_norm else None for _ in range(2)]
    blocks = Block(
        **projections,
        norm_attention=norms[0],
        norm_mlp=norms[1],
        bias={name: jnp.zeros((config.layers, config.projection_shape(name)[1]), dtype) for name in config.biases},
        norm_q=head_norms[0],
        norm_k=head_norms[1],
    )
    embed = normal((config.vocabulary, config.width))
    head = None if config.tied_head else normal((config.width, config.vocabulary))
    return Base(embed=embed, blocks=blocks, norm=jnp.ones(config.width, dtype), head=head)

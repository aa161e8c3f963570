"""LLaMA as pure functions over stacked pytrees: one `lax.scan` over the layer axis, nothing merged, nothing copied.

Every per-layer leaf begins with the layer axis `L`, so growing or shrinking a model is linear algebra on that axis and the
forward pass knows nothing of stages: it runs as many layers as the leaves have. The frozen `Base`, the trained `Adapter`
and the tokens are three separate arguments. From tokens to logits the calls go downward: `forward`,
`hidden_states`, `run_layers`, `_scan_run`; a single layer is `devft_jax.models.decoder.decoder_layer`.

Axis letters: B batch, T tokens, L layers, D model width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from devft_jax.models import attention
from devft_jax.models.adapter import Adapter, LoraFactors, layer_scales
from devft_jax.models.architecture import PROJECTIONS, ModelConfig
from devft_jax.models.attention import Attention, Kernel
from devft_jax.models.base import Base, Block, head_weight
from devft_jax.models.decoder import KEPT, PROJECTED, decoder_layer, fold_each, rms_norm, rotary_table
from devft_jax.models.hypernetwork import adapt, generator_of, prompt_shares
from devft_jax.models.options import REMAT
from devft_jax.models.weights import StackedWeight, read_layer
from devft_jax.typing import PyTree

_DOTS = jax.checkpoint_policies.save_only_these_names(PROJECTED, KEPT, attention.SAVED)
REMAT_POLICIES: dict[str, Any] = dict(zip(REMAT, (None, jax.checkpoint_policies.nothing_saveable, _DOTS), strict=True))
"""What is saved of a layer for the backward pass, by the names of `Compute.remat`."""


@dataclass(frozen=True)
class Compute:
    """How the forward pass is executed; changes speed and memory, not what is computed.

    Attributes:
      dtype: data type of activations and of the weights inside a product, "float32" or "bfloat16"; norms, softmax, low-rank
        factors and the loss stay float32.
      remat: what the backward pass recomputes: "none" keeps all activations, "dots" keeps the outputs of projections and
        attention, "full" keeps only each layer's input.
      attention: name of the kernel (`devft_jax.models.attention`).
      head_rows: number of tokens whose logits the loss holds at once.
      frozen_layers: number of an adapter's lowest layers that have no gradient, so that nothing is kept for their
        backward pass and it does not run.
    """

    dtype: str = "float32"
    remat: str = "none"
    attention: Kernel | Literal["auto"] = "auto"
    head_rows: int = 256
    frozen_layers: int = 0


DEFAULT_COMPUTE = Compute()


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
    """Logits of tokens.

    Args:
      config: as in `hidden_states`, like all other arguments.
      base: frozen weights.
      adapter: the adapter, or None.
      tokens: i32[B, T].
      compute: execution choices.
      key: random key; switches LoRA dropout on.
      prompt_lengths: i32[B].
      prefix: [B, T, D].

    Returns:
      f32[B, T, V].
    """
    options: dict[str, Any] = {"compute": compute, "key": key, "prompt_lengths": prompt_lengths, "prefix": prefix}
    return logits_of(base, hidden_states(config, base, adapter, tokens, **options))


def logits_of(base: Base, hidden: jax.Array) -> jax.Array:
    """Logits of hidden states.

    Args:
      base: the model whose head is used.
      hidden: [..., D].

    Returns:
      f32[..., V].
    """
    head = head_weight(base).astype(hidden.dtype)
    return jnp.einsum("...d,dv->...v", hidden, head, preferred_element_type=jnp.float32)


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
    """Final normalised hidden states, before the head.

    Args:
      config: the architecture; its `layers` is ignored, the leaves of `base.blocks` set the depth.
      base: frozen weights.
      adapter: of the same depth, or of the last layers only; None for the base alone.
      tokens: i32[B, T], padded on the right, where causal attention hides padding from every real token.
      compute: execution choices.
      key: one random key, or one per row [B], switches LoRA dropout on; None (evaluation) leaves it off. With a single key,
        row b uses fold_in(key, b).
      prompt_lengths: i32[B], tokens before the first answer token; needed only by an adapter with a hypernetwork.
      prefix: [B, T, D], the output of the layers below an adapter of the last layers (`prefix_states`), which then do not
        run; None runs them. At padding its values may be any finite numbers.

    Returns:
      [B, T, D] in the compute dtype.
    """
    length = tokens.shape[-1]
    options: dict[str, Any] = {"compute": compute, "key": key, "prompt_lengths": prompt_lengths, "prefix": prefix}
    attend, positions = causal_attention(config, compute, length), jnp.arange(length, dtype=jnp.int32)
    return run_layers(config, base, adapter, tokens, positions, attend=attend, **options)[0]


def causal_attention(config: ModelConfig, compute: Compute, length: int) -> Attention:
    """Attention over whole sequences, without a cache.

    Args:
      config: the architecture.
      compute: gives the kernel.
      length: T, tokens of a sequence.
    """
    kernel = attention.kernel_for(compute.attention, dtype=compute.dtype, head_size=config.head_size, length=length)
    return attention.causal(kernel, length=length, window=config.sliding_window)


def run_layers(
    config: ModelConfig,
    base: Base,
    adapter: Adapter | None,
    tokens: jax.Array,
    positions: jax.Array,
    *,
    attend: Attention,
    cache: PyTree = None,
    compute: Compute = DEFAULT_COMPUTE,
    key: jax.Array | None = None,
    prompt_lengths: jax.Array | None = None,
    prefix: jax.Array | None = None,
) -> tuple[jax.Array, PyTree]:
    """As `hidden_states`, with any attention function, which may read a cache and return new entries for it.

    Args:
      config: as in `hidden_states`.
      base: as in `hidden_states`.
      adapter: as in `hidden_states`.
      tokens: i32[B, T].
      positions: positions of the tokens, i32[T] or i32[B, T].
      attend: the attention function.
      cache: leaves [L, ...], of which `attend` gets the layer's; None for no cache.
      compute: as in `hidden_states`.
      key: as in `hidden_states`.
      prompt_lengths: as in `hidden_states`.
      prefix: as in `hidden_states`.

    Returns:
      Hidden states [B, T, D], and the entries that `attend` returned in the layers that ran, stacked [L, ...].
    """
    adapter = adapter or Adapter(lora={}, scale=jnp.float32(1.0))
    depth = base.blocks.norm_mlp.shape[0]
    adapted = adapter.depth(otherwise=depth)
    bare = depth - adapted
    if bare < 0:
        raise ValueError(f"the adapter has {adapted} layers and the base {depth}; give an adapter of at most as many.")
    if prefix is not None and bare == 0:
        raise ValueError("the adapter reaches down to the first layer, so no layer runs below it: give no prefix.")
    shared = _Shared(
        config=config,
        table=rotary_table(config, positions),
        attend=attend,
        change=_change(adapter, prompt_lengths, tokens.shape[-1]),
        dropout=adapter.dropout,
        row_keys=_row_keys(key, tokens.shape[0]),
    )
    x = embedded(base, tokens, compute) if prefix is None else prefix
    pieces = []
    for run in _runs(adapter, bare, depth, compute.frozen_layers):
        if prefix is None or run.first >= bare:
            x, entries = _scan_run(shared, base.blocks, cache, x, run, REMAT_POLICIES[compute.remat])
            pieces.append(entries)
    entries = pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *parts: jnp.concatenate(parts), *pieces)
    return rms_norm(x, base.norm, config.norm_epsilon), entries


def embedded(base: Base, tokens: jax.Array, compute: Compute) -> jax.Array:
    """The input of the first layer: the tokens' embeddings.

    Args:
      base: the model whose embedding is used.
      tokens: i32[B, T].
      compute: gives the dtype.

    Returns:
      [B, T, D] in the compute dtype.
    """
    return base.embed[tokens].astype(jnp.dtype(compute.dtype))


def prefix_states(
    config: ModelConfig, base: Base, tokens: jax.Array, layers: int, *, compute: Compute = DEFAULT_COMPUTE
) -> jax.Array:
    """The output of a base's lowest layers, without an adapter: the input of the layer above them.

    The states of a real token do not depend on the padding after it.

    Args:
      config: the architecture.
      base: frozen weights.
      tokens: i32[B, T], padded on the right.
      layers: number of the lowest layers to run.
      compute: execution choices.

    Returns:
      [B, T, D] in the compute dtype.
    """
    length = tokens.shape[-1]
    shared = _Shared(
        config=config,
        attend=causal_attention(config, compute, length),
        table=rotary_table(config, jnp.arange(length, dtype=jnp.int32)),
    )
    return _scan_run(shared, base.blocks, None, embedded(base, tokens, compute), _bare_run(layers), None)[0]


def _change(adapter: Adapter, prompt_lengths: jax.Array | None, length: int) -> Callable[..., jax.Array] | None:
    """The hypernetwork's change of a sublayer's output, given a layer's token; None without a hypernetwork."""
    if adapter.hyper is None:
        return None
    if prompt_lengths is None:
        raise ValueError("the adapter generates its weights from prompts: give prompt_lengths.")
    return partial(adapt, generator_of(adapter.hyper), prompt_shares(prompt_lengths, length))


def _row_keys(key: jax.Array | None, rows: int) -> jax.Array | None:
    """key[B], one key per row, from a single key or from B keys; None for None."""
    if key is None or key.ndim:
        return key
    return jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(rows, dtype=jnp.int32))


class _Adaptation(NamedTuple):
    """The part of an adapter for some layers, leaves [L, ...]: arguments of `decoder_layer` and a hypernetwork's tokens."""

    lora: dict[str, LoraFactors]
    scale: dict[str, jax.Array]
    delta: dict[str, jax.Array]
    layer_token: jax.Array | None


class _Run(NamedTuple):
    """Consecutive layers of one kind, from `first` to before `last`; layers that do not learn are not differentiated."""

    first: int
    last: int
    adaptation: _Adaptation
    learns: bool


def _runs(adapter: Adapter, bare: int, depth: int, frozen: int) -> list[_Run]:
    """Layers from the lowest up: `bare` ones without an adapter, `frozen` ones whose adapter has no gradient, the rest."""
    adaptation = _Adaptation(adapter.lora, layer_scales(adapter, depth - bare), adapter.delta, adapter.layer_tokens)
    if bare + frozen == 0:
        return [_Run(0, depth, adaptation, learns=True)]
    # Nothing below the first layer that learns depends on trained values, so it has no backward pass.
    fixed, learning = (
        jax.tree.map(lambda leaf, cut=cut: leaf[cut], adaptation) for cut in (slice(frozen), slice(frozen, None))
    )
    runs = (
        _bare_run(bare),
        _Run(bare, bare + frozen, jax.lax.stop_gradient(fixed), learns=False),
        _Run(bare + frozen, depth, learning, learns=True),
    )
    return [run for run in runs if run.first < run.last]


def _bare_run(layers: int) -> _Run:
    """The lowest `layers` layers, without an adapter."""
    return _Run(0, layers, _Adaptation({}, {}, {}, None), learns=False)


@dataclass(frozen=True)
class _Shared:
    """Values that all layers of a pass share."""

    config: ModelConfig
    table: tuple[jax.Array, jax.Array]
    attend: Attention
    change: Callable[..., jax.Array] | None = None
    dropout: float = 0.0
    row_keys: jax.Array | None = None

    def layer(
        self, x: jax.Array, block: Block, cache: PyTree, adaptation: _Adaptation, index: jax.Array
    ) -> tuple[jax.Array, PyTree]:
        """Layer `index`: its output [B, T, D] and its cache entries."""
        lora, scale, delta, token = adaptation
        return decoder_layer(
            self.config,
            x,
            block,
            lora,
            scale,
            delta,
            table=self.table,
            attend=self.attend,
            cache=cache,
            dropout=self.dropout,
            row_keys=None if self.row_keys is None else fold_each(self.row_keys, index),
            change=None if self.change is None or token is None else partial(self.change, token),
        )


def _scan_run(
    shared: _Shared, blocks: Block, cache: PyTree, x: jax.Array, run: _Run, policy: Callable[..., bool] | None
) -> tuple[jax.Array, PyTree]:
    """One scan over the layers of a run.

    The scan itself slices stacks that it runs through completely. From a part of a stack, layers are read by index instead,
    because slicing the stacked weights would copy them.

    Args:
      shared: what all layers share.
      blocks: the stacked weights of all layers.
      cache: the cache of all layers, leaves [L, ...].
      x: [B, T, D], the input of the run.
      run: the layers.
      policy: what is saved of a learning layer for the backward pass; None saves everything.

    Returns:
      The run's output [B, T, D], and its layers' cache entries, stacked.
    """
    whole = run.last - run.first == blocks.norm_mlp.shape[0]

    def step(x: jax.Array, given: tuple[PyTree, _Adaptation, jax.Array]) -> tuple[jax.Array, PyTree]:
        sliced, adaptation, index = given
        block, layer_cache = sliced if whole else read_layer((blocks, cache), index)
        if not whole and run.learns and policy is None:
            # Saving the layers that were read for the backward pass would be that copy; reading them again is not.
            block = block.replace(**{name: StackedWeight(getattr(blocks, name), index) for name in PROJECTIONS})
        return shared.layer(x, block, layer_cache, adaptation, index)

    if run.learns and policy is not None:
        step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    numbers = jnp.arange(run.first, run.last, dtype=jnp.int32)
    return jax.lax.scan(step, x, ((blocks, cache) if whole else None, run.adaptation, numbers))

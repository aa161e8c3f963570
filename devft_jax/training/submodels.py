"""The frozen model of a run: loaded and packed as the configuration says, and fused into a stage's submodel.

If several devices hold the base together (`model_shards`), no device ever holds all of it: the model is read, packed,
compared and fused in host memory, and only shards are put on the devices.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import LayerMap, fuse, layer_gram, norm_gains
from devft_jax.errors import InputError
from devft_jax.models.base import Base, Block
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.reading import load_original_blocks, load_pretrained
from devft_jax.models.llama import Compute
from devft_jax.models.quantization import QTensor, is_quantized, quantize_base, quantize_projection
from devft_jax.models.sharding import place_frozen, placed_shapes, shard_base, shard_blocks, whole
from devft_jax.runtime.devices import MODEL_AXIS, host_device


def bundled_model() -> Path:
    """The folder of the small LLaMA that comes with the package."""
    return Path(str(resources.files("devft_jax") / "assets" / "base"))


def model_path(name: str) -> str | Path:
    """The folder or Hugging Face name that the option `model` refers to.

    Args:
      name: a folder, a Hugging Face name, or "bundled" for the small LLaMA of the package.
    """
    return bundled_model() if name == "bundled" else name


def open_model(
    config: RunConfig, compute: Compute, given: Model | None, note: Callable[[int, int], None] | None = None
) -> tuple[Model, Callable[[], Block]]:
    """The run's model, packed as configured, and a function that returns its layers before packing.

    Its weights are on the default device, or in host memory (numpy) if several devices hold the base together.

    Args:
      config: the run's configuration.
      compute: has the data type of weights that stay floats.
      given: a model that replaces the configuration's; None for none.
      note: as in `load_pretrained`.

    Raises:
      InputError: the model cannot be read, or float weights are needed from a given model that is packed.
    """
    if config.model_shards > 1:
        with jax.default_device(host_device()):
            model, original_blocks = _open_model(config, compute, given, note)
        return model.with_base(jax.device_get(model.base)), original_blocks
    return _open_model(config, compute, given, note)


def _open_model(
    config: RunConfig, compute: Compute, given: Model | None, note: Callable[[int, int], None] | None
) -> tuple[Model, Callable[[], Block]]:
    if given is None:
        path = model_path(config.model)
        model = load_pretrained(path, dtype=compute.dtype, quantization=config.quantization, note=note)
        return model, lambda: load_original_blocks(path)
    if config.fuse_from == "original" and is_quantized(given.base):
        raise InputError(
            "fuse_from 'original' needs the model's float weights, but the given model is packed; pass a float model, "
            "or use fuse_from 'packed'."
        )
    packed = given if config.quantization == "none" else given.with_base(quantize_base(given.base, config.quantization))
    return packed, lambda: given.base.blocks


def fuse_blocks(
    layer_map: LayerMap, source: Block, base: Block, *, repack: bool, dtype: Any, match_gains: bool = False
) -> Block:
    """The representative layers of a stage, fused leaf by leaf so that only one expanded leaf is held at a time.

    Args:
      layer_map: a map other than the identity.
      source: [L, ...], what is fused: floats (numpy or JAX) or packed.
      base: [L, ...], the base's own layers; a leaf that is a float here stays a float of that dtype.
      repack: whether the other leaves are packed again, each in its own kind (layers that are only selected keep their
        codes); otherwise they are expanded to `dtype`.
      dtype: of fused layers that are expanded.
      match_gains: whether fused projections are scaled by `norm_gains`.
    """
    match_gains = match_gains and layer_map.selected() is None

    def one(leaf: Any, own: Any) -> Any:
        fused = fuse(layer_map, leaf)
        if match_gains and fused.ndim > 2:
            gains = norm_gains(layer_gram(leaf), layer_map.fuse, layer_map.assign)
            fused = (fused * np.asarray(gains)[:, None, None]).astype(fused.dtype)
        if not isinstance(own, QTensor):
            return fused.astype(own.dtype)
        if repack:
            return fused if isinstance(fused, QTensor) else quantize_projection("a fused projection", fused, own.kind)
        return fused.dequantize(dtype) if isinstance(fused, QTensor) else fused.astype(dtype)

    return jax.tree.map(one, source, base, is_leaf=lambda leaf: isinstance(leaf, QTensor))


def stored_as(blocks: Block, base: Block, *, repack: bool, dtype: Any) -> Block:
    """Layers in the form in which a stage's fused layers are stored; the arguments are those of `fuse_blocks`."""

    def one(leaf: Any, own: Any) -> Any:
        if not isinstance(own, QTensor):
            return leaf.astype(own.dtype)
        return quantize_projection("a fused projection", leaf, own.kind) if repack else leaf.astype(dtype)

    return jax.tree.map(one, blocks, base, is_leaf=lambda leaf: isinstance(leaf, QTensor))


class Submodels:
    """Builds the frozen part of a stage's submodel.

    Args:
      config: `fuse_from` and `fused_precision` decide what is fused and how it is stored.
      model: the run's model.
      original_blocks: returns its layers before they were packed.
      dtype: of leaves that are stored as floats.
      depths: number of layers of every stage, if the growth knows them in advance.
      mesh: the devices that train; the size of its model axis is the number of devices that hold a base together.

    Attributes:
      base: the model's own base, on the devices of the mesh.
      home: where layers are compared and fused: None for the default device, or the host's memory.
    """

    def __init__(
        self,
        config: RunConfig,
        model: Model,
        original_blocks: Callable[[], Block],
        *,
        dtype: Any,
        depths: tuple[int, ...] | None,
        mesh: Mesh,
    ):
        self._config, self._model, self._original_blocks = config, model, original_blocks
        self._dtype, self._depths, self._mesh = dtype, depths, mesh
        self._shards = mesh.shape[MODEL_AXIS]
        self.home = host_device() if self._shards > 1 else None
        # Layers are compared and fused in one place; what clients use is put on all devices, whole or sharded.
        self.base = place_frozen(shard_base(model.base, self._shards, MODEL_AXIS), mesh)

    def layers_to_fuse(self, stage: int) -> Block:
        """The layers from which a stage is grouped and fused: the base's, or the original ones of a quantised base."""
        full_depth = self._depths is not None and self._depths[stage : stage + 1] == (self._model.config.layers,)
        # A stage at full depth fuses nothing, so nothing has to be read for it.
        own = self._config.fuse_from == "packed" or full_depth
        return self._model.base.blocks if own else self._original_blocks()

    def shapes(self, layer_map: LayerMap) -> Base:
        """Shapes, dtypes and placement of what `fused` returns for maps of this shape."""
        if layer_map.runs_base:
            return placed_shapes(self.base, self._mesh)

        def one(own: Any) -> Any:
            if isinstance(own, QTensor) and self._config.fused_precision != "packed":
                own = jax.ShapeDtypeStruct(own.shape, self._dtype)
            return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((layer_map.num_groups, *leaf.shape[1:]), leaf.dtype), own)

        blocks = jax.tree.map(one, self._model.base.blocks, is_leaf=lambda leaf: isinstance(leaf, QTensor))
        return placed_shapes(self.base.replace(blocks=shard_blocks(blocks, self._shards, MODEL_AXIS)), self._mesh)

    def fused(
        self,
        layer_map: LayerMap,
        blocks: Block,
        *,
        match_gains: bool | None = None,
        distil: Callable[[LayerMap, Block], Block] | None = None,
    ) -> Base:
        """The base with a stage's layers, fused from `blocks`; a map that keeps all layers returns the base itself.

        Args:
          layer_map: the stage's map.
          blocks: the layers to fuse.
          match_gains: as in `fuse_blocks`; None as configured.
          distil: (map, fused layers) -> these trained, in float32, before they are packed or rounded; None leaves them as
            they are.
        """
        if layer_map.runs_base:
            return self.base
        own, repack = self._model.base.blocks, self._config.fused_precision == "packed"
        with jax.default_device(self.home):
            matches = self._config.gain_matching if match_gains is None else match_gains
            if distil is None:
                fused = fuse_blocks(layer_map, blocks, own, repack=repack, dtype=self._dtype, match_gains=matches)
            else:
                wide = fuse_blocks(layer_map, blocks, own, repack=False, dtype=jnp.float32, match_gains=matches)
                fused = stored_as(distil(layer_map, wide), own, repack=repack, dtype=self._dtype)
        return self.base.replace(blocks=place_frozen(shard_blocks(fused, self._shards, MODEL_AXIS), self._mesh))

    def picked(self, layer_map: LayerMap) -> Base:
        """The base with some of its own layers, as they are stored.

        Args:
          layer_map: a map whose rows are single layers.
        """
        blocks = fuse(layer_map, self._model.base.blocks)
        return self.base.replace(blocks=place_frozen(shard_blocks(blocks, self._shards, MODEL_AXIS), self._mesh))

    def to_host(self, tree: Any) -> Any:
        """Move arrays to where they are compared with the layers: to host memory if no device holds the whole base."""
        return tree if self.home is None else jax.device_get(tree)

    def on_one_device(self, base: Base) -> Base:
        """The base in the place from which values are derived from its weights: on the first device, or in host memory."""
        if self._shards > 1:
            return jax.device_get(whole(base))
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), base)

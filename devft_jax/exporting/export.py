"""Exports a run or an adapter: folders that PEFT and transformers load.

The forms are those of `devft_jax.exporting.request`. A run is read from its checkpoints (`devft_jax.inference.selected`);
nothing is trained and no data is read. Everything is computed in host memory.
"""

from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from devft_jax.errors import InputError
from devft_jax.exporting.options import ExportOptions, Form
from devft_jax.exporting.request import Request
from devft_jax.exporting.writing import Exported, write_adapter, write_both, write_model
from devft_jax.inference.selected import Selected, select
from devft_jax.models.huggingface.folder import model_folder
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.reading import load_original_blocks
from devft_jax.models.huggingface.tokenizer import load_tokenizer
from devft_jax.models.huggingface.writing import MAX_SHARD_BYTES
from devft_jax.runtime.devices import host_device
from devft_jax.runtime.processes import refuse_several
from devft_jax.training.distilling import is_distilled
from devft_jax.training.stored_runs import kind_of
from devft_jax.training.submodels import fuse_blocks


def export(
    source: str | Path,
    out: str | Path,
    *,
    form: Form = "adapter",
    stage: int | None = None,
    round: int | Literal["best"] | None = None,
    client: str | None = None,
    model: str | None = None,
    dtype: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Write a run, or a PEFT adapter with its base, as a folder that PEFT or transformers can load.

    The newest checkpoint is used, also of an unfinished run. A quantised run's base is packed as in the run and written
    dequantised, so that the export equals what was trained.

    Args:
      source: a run's folder; or a PEFT adapter's, for the form merged.
      out: the folder to write: absent, empty, or an earlier export of the same request.
      form: adapter, merged, submodel or submodel-adapter; see `devft_jax.exporting.request`.
      stage: from 1; uses the newest checkpoint of that stage, also for adapter, merged and submodel.
      round: from 1, in place of a stage; uses the checkpoint of that round, if it is kept; "best" for the round of lowest
        held-out loss of a run with `stop_after`.
      client: the client whose model to write, by its name in the run's split; only for a run where every client has its own.
      model: the base: a folder, Hugging Face name or "bundled"; by default the one that the run or the adapter names.
      dtype: data type of stored model weights, "bfloat16", "float32" or "float16"; "auto" keeps that of the base, and
        weights that no adapter changes keep their bytes. Adapters are stored in float32.
      max_shard_bytes: the largest size of one file of weights.

    Returns:
      What was written.

    Raises:
      InputError: the request is invalid; nothing has been written.
      RunError: the folder cannot be written.
    """
    refuse_several("an export")
    options = ExportOptions(
        source=str(source),
        out=str(out),
        form=form,
        stage=stage,
        round=round,
        client=client,
        model=model,
        dtype=dtype,
    )
    request = Request(options, max_shard_bytes)
    request.check()
    # Weights pass through host memory from file to file, because an accelerator may be too small for them.
    with jax.default_device(host_device()):
        return _export(request)


def _export(request: Request) -> Exported:
    """Write what a checked request asks for."""
    source, options = request.source, request.options
    kind = kind_of(source)
    if kind == "model":
        raise InputError(f"{source} holds neither a run nor a PEFT adapter; name a folder that `devft run` or PEFT wrote.")
    if kind == "adapter" and options.form != "merged":
        raise InputError(f"{source} is a PEFT adapter, which can only be exported merged; give --form merged.")
    selected = select(options.source, options)
    assert selected.adapter is not None
    ends = selected.ends(lambda: load_tokenizer(model_folder(selected.base)))
    if options.form == "adapter":
        return write_adapter(request, selected.adapter, selected.name, selected.base, ends)
    if options.form == "merged":
        what = f"{selected.base} merged with {selected.name}"
        return write_model(request, selected.load(), selected.adapter, what, ends)
    if selected.saved is None:
        raise InputError(f"{source} has no checkpoint left, which a submodel needs; give --form adapter or merged.")
    small = _submodel(selected)
    what = f"the submodel of stage {selected.stage} {selected.when}, {small.config.layers} layers"
    if options.form == "submodel":
        return write_model(request, small, selected.saved.submodel, f"{what}, merged with its adapter", ends)
    return write_both(request, small, selected.saved.submodel, f"{what}, and its adapter", ends)


def _submodel(selected: Selected) -> Model:
    """The submodel of a stage without adapter, fused as in the run but in float32 where it stays in floats."""
    run, saved = selected.run, selected.saved
    assert run is not None
    assert saved is not None
    layer_map, config = saved.layer_map, run.config
    if config.distil_steps and is_distilled(layer_map):
        raise InputError(
            f"the fused layers of stage {selected.stage} were distilled in the run and are not stored in it; give --form "
            "adapter or merged, or a stage without fused layers."
        )
    model = selected.load(dtype="float32")
    if layer_map.runs_base:
        return model
    own = model.base.blocks
    source = own if config.fuse_from == "packed" else load_original_blocks(selected.base)
    repack = config.fused_precision == "packed"
    matches = config.gain_matching
    blocks = fuse_blocks(layer_map, source, own, repack=repack, dtype=jnp.float32, match_gains=matches)
    return Model(model.config.with_layers(layer_map.num_groups), model.base.replace(blocks=blocks), model.folder)

"""Exports a run or an adapter: folders that PEFT and transformers load.

The forms are those of `devft_jax.exporting.request`. A run is read from its checkpoints (`devft_jax.inference.saved`);
nothing is trained and no data is read. Everything is computed in host memory.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from devft_jax.data.answer_ends import ends_of_adapter
from devft_jax.errors import InputError
from devft_jax.exporting.request import FULL_FORMS, Form, Request, lasting_name
from devft_jax.exporting.writing import Exported, write_adapter, write_both, write_model
from devft_jax.inference.saved import SavedAdapters, chosen_round, read_saved
from devft_jax.inference.sources import StoredRun, kind_of, read_run
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.families import read_config
from devft_jax.models.huggingface.folder import CONFIG_FILE, model_folder
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.settings import base_of_adapter
from devft_jax.models.huggingface.reading import load_original_blocks, load_pretrained
from devft_jax.models.huggingface.safetensors import DTYPES
from devft_jax.models.huggingface.tokenizer import load_tokenizer
from devft_jax.models.huggingface.writing import MAX_SHARD_BYTES
from devft_jax.runtime.devices import host_device
from devft_jax.storage import RunFolder
from devft_jax.training.fingerprints import base_fingerprint
from devft_jax.training.submodels import fuse_blocks


def export(
    source: str | Path,
    out: str | Path,
    *,
    form: Form = "adapter",
    stage: int | None = None,
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
    request = Request(
        source=Path(source).expanduser(),
        out=Path(out).expanduser().absolute(),
        form=form,
        stage=stage,
        client=client,
        model=model,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    request.check()
    # Weights pass through host memory from file to file, because an accelerator may be too small for them.
    with jax.default_device(host_device()):
        return _export_adapter(request) if kind_of(request.source) == "adapter" else _export_run(request)


def _export_adapter(request: Request) -> Exported:
    """Write the folder of a PEFT adapter merged into its base."""
    source = request.source
    if request.client is not None:
        raise InputError(f"{source} is a PEFT adapter, which belongs to no client; leave client out.")
    if request.form != "merged" or request.stage is not None:
        raise InputError(
            f"{source} is a PEFT adapter, which can only be exported merged and without a stage; give --form merged alone, "
            "or a run's folder."
        )
    base = lasting_name(request.model or base_of_adapter(source, "name it with --model"))
    adapter = import_peft(source, read_config(model_folder(base) / CONFIG_FILE))
    what = f"{base} merged with the adapter {source}"
    return write_model(request, load_pretrained(base), adapter, what, ends_of_adapter(source))


def _export_run(request: Request) -> Exported:
    run = _exportable(request)
    position = run.client_position(request.client)
    base = lasting_name(request.model or run.config.model)
    ends = run.ends(lambda: load_tokenizer(model_folder(base)))
    full = request.form in FULL_FORMS
    with RunFolder(run.folder).reading() as folder:
        rounds = folder.checkpoints.last_rounds()
        if not rounds and request.stage is None and full and (run.adapter_folder / ADAPTER_CONFIG_FILE).is_file():
            adapter = import_peft(run.adapter_folder, read_config(model_folder(base) / CONFIG_FILE))
            return _write_full(request, run, base, adapter, f"the adapter of {run.folder} as it finished", None, ends)
        chosen = chosen_round(folder, rounds, request.stage)
        total = sum(folder.checkpoints.read_record(max(rounds.values())).totals.stage_rounds)
        saved = read_saved(folder, chosen, run, read_config(model_folder(base) / CONFIG_FILE), position)
    when = f"of {run.folder} after round {chosen} of {total}"
    if request.client is not None:
        when = f"of client '{request.client}' {when}"
    if full:
        return _write_full(request, run, base, saved.full, f"the adapter {when}", saved.base, ends)
    small = _submodel(run, base, saved)
    what = f"the submodel of stage {saved.stage} {when}, {small.config.layers} layers"
    if request.form == "submodel":
        return write_model(request, small, saved.submodel, f"{what}, merged with its adapter", ends)
    return write_both(request, small, saved.submodel, f"{what}, and its adapter", ends)


def _exportable(request: Request) -> StoredRun:
    """The run to export, which can be rebuilt from its folder and whose adapter other tools can load."""
    source = request.source
    if kind_of(source) != "run":
        raise InputError(f"{source} holds neither a run nor a PEFT adapter; name a folder that `devft run` or PEFT wrote.")
    run = read_run(source)
    if "algorithm" in run.objects:
        raise InputError(
            f"the algorithm of the run in {source} was passed as an object in Python and is not in its folder; write "
            "the adapter of its Run with export_peft."
        )
    if "model" in run.objects and request.model is None:
        raise InputError(
            f"the model of the run in {source} was passed as an object in Python; name its folder with --model."
        )
    if not run.algorithm.low_rank:
        raise InputError(
            f"the run in {source} ({run.config.algorithm}) has no low-rank adapter, the only kind that other tools load; "
            "its checkpoints hold what it learned."
        )
    return run


def _write_full(
    request: Request, run: StoredRun, base: str, adapter: Adapter, what: str, trained_on: str | None, ends: Sequence[int]
) -> Exported:
    """Write the adapter at full depth, alone or in its base, which is checked by the fingerprint from training."""
    if request.form == "adapter":
        return write_adapter(request, adapter, what, base, ends)
    model = load_pretrained(base, quantization=run.config.quantization)
    _warn_of_another_base(model, trained_on)
    return write_model(request, model, adapter, f"{base} merged with {what}", ends)


def _warn_of_another_base(model: Model, trained_on: str | None) -> None:
    """Warn if the weights differ from those that the run was trained on, whatever their precision."""
    known = trained_on is None or trained_on in [base_fingerprint(model.base, dtype) for dtype in (None, *DTYPES.values())]
    if not known:
        warnings.warn(
            f"the weights of {model.path} are not those that the run was trained on; "
            "the export will compute something else.",
            stacklevel=2,
        )


def _submodel(run: StoredRun, base: str, saved: SavedAdapters) -> Model:
    """The submodel of a stage without adapter, fused as in the run but in float32 where it stays in floats."""
    layer_map, config = saved.layer_map, run.config
    model = load_pretrained(base, quantization=config.quantization, dtype="float32")
    _warn_of_another_base(model, saved.base)
    if layer_map.runs_base:
        return model
    own = model.base.blocks
    source = own if config.fuse_from == "packed" else load_original_blocks(base)
    repack = config.fused_precision == "packed"
    blocks = fuse_blocks(layer_map, source, own, repack=repack, dtype=jnp.float32)
    return Model(model.config.with_layers(layer_map.num_groups), model.base.replace(blocks=blocks), model.folder)

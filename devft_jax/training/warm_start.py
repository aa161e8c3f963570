"""Reads the adapter with which a run begins: from a PEFT folder, a finished run, or a stage of a run.

How it becomes the first state of an algorithm is in `devft_jax.federated.warm_start`.
"""

import jax
import jax.numpy as jnp

from devft_jax.config.run_config import RunConfig
from devft_jax.config.warm_starts import adapter_folder, warm_start_digest
from devft_jax.errors import InputError
from devft_jax.federated.aggregation import best_factors
from devft_jax.federated.warm_start import WarmStart
from devft_jax.files import checked_path
from devft_jax.models.adapter import Adapter, LoraFactors, layer_scales
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.families import read_config
from devft_jax.models.huggingface.folder import CONFIG_FILE, model_folder
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.options import lora_scale
from devft_jax.runtime.devices import host_device
from devft_jax.storage.chosen import round_at_end_of_stage
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.saved_adapters import SavedAdapters, read_saved
from devft_jax.training.stored_runs import StoredRun, read_run
from devft_jax.training.submodels import model_path


def read_warm_start(config: RunConfig, model: ModelConfig) -> WarmStart | None:
    """The adapter with which a run begins; None for a run that begins with a new one.

    Args:
      config: the run's configuration.
      model: the architecture of its model.

    Raises:
      InputError: it cannot be read, has changed since its digest was recorded, or does not fit the model.
    """
    if warm_start_digest(config) is None:
        return None
    if config.adapter is not None:
        folder = adapter_folder(config.adapter)
        start = WarmStart(import_peft(folder, model), f"the adapter {folder}")
    else:
        start = _of_stage(read_run(checked_path(str(config.init_from), "init_from")), config.stage)
    if config.truncate_adapter:
        return WarmStart(truncated(start.adapter, config.rank, lora_scale(config)), start.what)
    return start


def _of_stage(run: StoredRun, stage: int | None) -> WarmStart:
    """The adapter of a run at full depth at the end of a stage."""
    if run.objects:
        raise InputError(
            f"the {', '.join(run.objects)} of the run in {run.folder} were passed as objects in Python, so that its stages "
            "cannot be read; let it finish and give it as --adapter."
        )
    if not run.algorithm.low_rank:
        raise InputError(
            f"the run in {run.folder} ({run.config.algorithm}) has no low-rank adapter to begin with; name another run."
        )
    if not run.algorithm.has_global_model:
        raise InputError(
            f"the run in {run.folder} ({run.config.algorithm}) has no global model; write one client's adapter by `devft "
            "export --client` and give it as --adapter."
        )
    architecture = read_config(model_folder(str(model_path(run.config.model))) / CONFIG_FILE)
    with RunFolder(run.folder).reading() as folder, jax.default_device(host_device()):
        saved = saved_at(folder, round_at_end_of_stage(folder, stage), run, architecture, None)
    return WarmStart(saved.full, f"the adapter of {run.folder} after stage {saved.stage}")


def saved_at(
    folder: RunFolder, round_index: int, run: StoredRun, architecture: ModelConfig, position: int | None
) -> SavedAdapters:
    """`read_saved` of a run that may itself have begun with an adapter.

    Args:
      folder: the run's folder, held for reading.
      round_index: the round of the checkpoint.
      run: the run.
      architecture: of the base at full depth.
      position: index of the client whose model is read; None for the model of all clients.
    """
    return read_saved(
        folder, round_index, run, architecture, position, start=lambda: read_warm_start(run.config, architecture)
    )


def truncated(adapter: Adapter, rank: int, scale: float) -> Adapter:
    """An adapter whose update of every weight is the nearest one of a rank, in the Frobenius norm.

    Args:
      adapter: an adapter without dense corrections.
      rank: the rank to which projections of larger rank are reduced.
      scale: the scale of the result.
    """
    scales = layer_scales(adapter, adapter.depth(otherwise=0))

    def one(name: str, factors: LoraFactors) -> LoraFactors:
        scaled = LoraFactors(a=factors.a * scales[name][:, None, None], b=factors.b)
        if factors.a.shape[-1] > rank:
            return best_factors(scaled, rank, scale)
        return scaled.replace(a=factors.a, b=factors.b * (scales[name] / scale)[:, None, None])

    return adapter.replace(lora={name: one(name, each) for name, each in adapter.lora.items()}, scale=jnp.float32(scale))

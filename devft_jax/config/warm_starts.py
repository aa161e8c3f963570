"""The adapter with which a run begins, as files: where it is, and the digest by which its content is recorded.

The digest is part of a run's identity in place of the paths, so that the same content found elsewhere is the same run, and
another content under the same path is another run.
"""

import json
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.federated.options import WarmStartOptions
from devft_jax.files import checked_path, existing_folder
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.safetensors import read_json
from devft_jax.storage.chosen import round_at_end_of_stage
from devft_jax.storage.digests import mark_of, new_digest, read_list
from devft_jax.storage.ownership import is_run
from devft_jax.storage.run_folder import RunFolder

WITHOUT_EFFECT = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}
"""Fields of an adapter's configuration that do not change what it computes."""


def adapter_folder(path: str) -> Path:
    """The PEFT folder that the option `adapter` names: the folder itself, or the final adapter of a run.

    Args:
      path: the option's value.

    Raises:
      InputError: there is no such folder, or it holds neither.
    """
    folder = existing_folder(checked_path(path, "adapter"), "give --adapter the folder of a PEFT adapter or of a run")
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return folder
    if not is_run(folder):
        raise InputError(f"adapter {path} holds neither a PEFT adapter nor a run; name the folder of one of them.")
    if not (folder / "summary.json").exists():
        raise InputError(
            f"adapter {path} is a run that has not finished, so that it has no final adapter; let it finish, or give "
            f"--init-from {path} for a stage that has ended."
        )
    if not (folder / "adapter" / ADAPTER_CONFIG_FILE).is_file():
        raise InputError(
            f"adapter {path} is a run without one low-rank adapter of all clients; name another, or a folder in which "
            "`devft export` wrote one client's."
        )
    return folder / "adapter"


def warm_start_digest(options: WarmStartOptions) -> str | None:
    """The digest of the adapter with which a run begins; None for a run that begins with a new one.

    Args:
      options: the options of the warm start.

    Raises:
      InputError: both options name one, there is no such adapter, or its content is not that of `adapter_digest`.
    """
    if options.adapter is not None and options.init_from is not None:
        raise InputError(
            f"adapter {options.adapter} and init_from {options.init_from} both name what the run begins with; give one."
        )
    if options.adapter is not None:
        source, content = f"adapter {options.adapter}", _of_adapter(adapter_folder(options.adapter))
    elif options.init_from is not None:
        source, content = f"init_from {options.init_from}", _of_checkpoint(options.init_from, options.stage)
    else:
        return None
    digest = str(new_digest(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16])
    if options.adapter_digest not in (None, digest):
        raise InputError(
            f"{source} has the digest {digest}, not adapter_digest {options.adapter_digest}: its content has changed; "
            "restore it, or leave adapter_digest out to begin with what is there."
        )
    return digest


def _of_adapter(folder: Path) -> list[Any]:
    """What decides what an adapter computes: its weights, and its configuration without names and settings for training."""
    weights = folder / ADAPTER_WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(
            f"the adapter folder {folder} holds no {ADAPTER_WEIGHTS_FILE}; save the adapter as safetensors, because "
            "pickles are not read."
        )
    fields = read_json(folder / ADAPTER_CONFIG_FILE)
    plain = {name: value for name, value in fields.items() if name not in WITHOUT_EFFECT}
    # PEFT writes sets of modules in any order.
    plain = {name: sorted(map(str, value)) if isinstance(value, list) else value for name, value in plain.items()}
    return [mark_of(weights), plain]


def _of_checkpoint(path: str, stage: int | None) -> list[Any]:
    """The arrays of a run's checkpoint; its record also has times."""
    folder = existing_folder(checked_path(path, "init_from"), "give --init-from a run's folder")
    if not is_run(folder):
        raise InputError(f"init_from {path} is not a run; name a run's folder, or give --adapter for a PEFT adapter.")
    with RunFolder(folder).reading() as opened:
        checkpoint = opened.checkpoints.path / "checkpoints" / str(round_at_end_of_stage(opened, stage))
        listed = read_list(checkpoint)
    return [{name: mark for name, mark in listed["files"].items() if name != "record.json"}, listed["bank"]]

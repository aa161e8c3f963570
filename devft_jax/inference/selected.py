"""The model that the user asks for, found before its weights are read: which one it is, its base and its adapter.

    WHAT                  a run's folder, a PEFT adapter's, a model's, a Hugging Face name, or "bundled"
    --stage or --round    the run as it was at a checkpoint
    --client              the client whose model it is, if every client has its own
    --model               the base, if it is not the one that WHAT names

`select` finds the model and reads the adapter; `Selected.load` reads the base, quantised as in the run. By default it is the
run's newest checkpoint, finished or not.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from devft_jax.data.answer_ends import ends_of_adapter
from devft_jax.errors import InputError
from devft_jax.files import checked_path
from devft_jax.inference.options import SelectionOptions
from devft_jax.models.adapter import Adapter
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.huggingface.families import read_config
from devft_jax.models.huggingface.folder import CONFIG_FILE, model_folder, named_from_anywhere
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.settings import base_of_adapter
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.options import DTYPES
from devft_jax.runtime.devices import host_device
from devft_jax.storage.chosen import chosen_round
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.fingerprints import base_fingerprint
from devft_jax.training.saved_adapters import SavedAdapters
from devft_jax.training.stored_runs import StoredRun, kind_of, read_run
from devft_jax.training.submodels import model_path
from devft_jax.training.warm_start import saved_at


@dataclass(frozen=True)
class Selected:
    """The selected model; its base is not read yet.

    Attributes:
      name: what it is, in words, such as "the adapter of runs/a after round 4 of 6".
      base: a folder that is valid from anywhere, or a Hugging Face name.
      when: run and checkpoint in words, such as "of runs/a after round 4 of 6"; empty without a checkpoint.
      adapter: the trained adapter at full depth, not merged; None for a model without one.
      adapter_folder: the folder that the adapter was read from; None if it is from a checkpoint, or there is none.
      run: the run; None if the source is not a run.
      saved: the adapters of the checkpoint; None if the adapter is from a folder, or there is none.
      stage: stage of the checkpoint, from 1; None without a checkpoint.
      round: round of the checkpoint, from 1; None without a checkpoint.
      client: the client whose model it is; None for the model of all clients.
    """

    name: str
    base: str
    when: str = ""
    adapter: Adapter | None = None
    adapter_folder: Path | None = None
    run: StoredRun | None = None
    saved: SavedAdapters | None = None
    stage: int | None = None
    round: int | None = None
    client: str | None = None

    def load(self, *, quantization: str | None = None, dtype: str | None = None) -> Model:
        """Read the base, with its tokenizer; warn if it is not the one that the run was trained on.

        Args:
          quantization: storage of its projections; None for the run's.
          dtype: as in `load_pretrained`.

        Raises:
          InputError: there is no such model, or it cannot be read.
        """
        own = "none" if self.run is None else self.run.config.quantization
        packed = quantization or own
        model = load_pretrained(self.base, quantization=packed, dtype=dtype)
        # In a data type of lower precision than the stored one, the same weights would differ.
        if self.saved is not None and packed == own and dtype in (None, "float32"):
            _warn_of_another_base(model, self.saved.base)
        return model

    def ends(self, tokenizer: Callable[[], Any]) -> list[int]:
        """Ids of the tokens that ended answers in training, besides the base's own.

        Args:
          tokenizer: loads the base's tokenizer if it is needed.

        Raises:
          InputError: a file that names them cannot be read, or names a token that the tokenizer does not have.
        """
        found = [] if self.run is None else self.run.ends(tokenizer)
        return found + ([] if self.adapter_folder is None else ends_of_adapter(self.adapter_folder))


def lasting_name(model: str) -> str:
    """A base as a path that is valid from any folder, or its Hugging Face name.

    Args:
      model: a folder, a Hugging Face name or "bundled".
    """
    return named_from_anywhere(str(model_path(model)))


def select(source: str, options: SelectionOptions, *, adapter: str | None = None) -> Selected:
    """Find the model that the user asks for.

    Args:
      source: a run's folder, a PEFT adapter's (with the base that it names), a model's, a Hugging Face name, or "bundled".
      options: which of its models.
      adapter: folder of a PEFT adapter that takes the place of the source's own.

    Raises:
      InputError: there is no such model, or it cannot be read.
    """
    folder = checked_path(source, "source")
    kind = kind_of(folder)
    asked = {"stage": options.stage, "round": options.round, "client": options.client}
    named = [name for name, value in asked.items() if value is not None]
    if named and kind != "run":
        what = "a PEFT adapter" if kind == "adapter" else "a model"
        raise InputError(
            f"{source} is {what}, which belongs to no {named[0]}; leave {named[0]} out, or name a run's folder."
        )
    if named and adapter is not None:
        raise InputError(f"{named[0]} chooses an adapter of the run, and adapter names another; give one of them.")
    if kind == "run":
        return _of_run(read_run(folder), options, adapter)
    if kind == "adapter":
        base = lasting_name(options.model or base_of_adapter(folder, "name it with --model"))
        chosen = folder if adapter is None else checked_path(adapter, "adapter")
        return _with_adapter(base, chosen, f"the adapter {chosen}")
    if options.model is not None:
        raise InputError(f"model {options.model} names a base and {source} is a model itself; leave model out.")
    base = lasting_name(source)
    if adapter is None:
        return Selected(name=str(source), base=base)
    return _with_adapter(base, checked_path(adapter, "adapter"), f"the adapter {adapter}")


def _with_adapter(base: str, folder: Path, name: str, run: StoredRun | None = None) -> Selected:
    """A base with the adapter in a folder."""
    return Selected(name=name, base=base, adapter=import_peft(folder, _architecture(base)), adapter_folder=folder, run=run)


def _architecture(base: str) -> ModelConfig:
    return read_config(model_folder(base) / CONFIG_FILE)


def _of_run(run: StoredRun, options: SelectionOptions, adapter: str | None) -> Selected:
    """A run's model: with an adapter from a folder, from a checkpoint, or, if no checkpoint is left, from its own folder."""
    base = _base_of_run(run, options.model)
    if adapter is not None:
        return _with_adapter(base, checked_path(adapter, "adapter"), f"the adapter {adapter}", run)
    own_algorithm = "algorithm" in run.objects
    as_it_finished = (options.stage, options.round, options.client) == (None, None, None)
    as_it_finished = as_it_finished and (run.adapter_folder / ADAPTER_CONFIG_FILE).is_file()
    if own_algorithm and not as_it_finished:
        raise InputError(
            f"the algorithm of the run in {run.folder} was passed as an object in Python and is not in its folder, so that "
            "only its finished adapter can be read; let it finish, and leave stage, round and client out."
        )
    if not own_algorithm and not run.algorithm.low_rank:
        raise InputError(
            f"the run in {run.folder} ({run.config.algorithm}) has no low-rank adapter, the only kind that can "
            "generate answers or be exported; its checkpoints hold what it learned."
        )
    position = None if own_algorithm else run.client_position(options.client)
    with RunFolder(run.folder).reading() as folder:
        if as_it_finished and (own_algorithm or not folder.checkpoints.last_rounds()):
            return _with_adapter(base, run.adapter_folder, f"the adapter of {run.folder} as it finished", run)
        number = chosen_round(folder, options.stage, options.round)
        newest = max(folder.checkpoints.last_rounds().values())
        total = sum(folder.checkpoints.read_record(newest).totals.stage_rounds)
        with jax.default_device(host_device()):
            saved = saved_at(folder, number, run, _architecture(base), position)
    whose = f"of client '{options.client}' " if options.client is not None else ""
    when = f"{whose}of {run.folder} after round {number} of {total}"
    return Selected(
        name=f"the adapter {when}",
        when=when,
        base=base,
        adapter=saved.full,
        run=run,
        saved=saved,
        stage=saved.stage,
        round=number,
        client=options.client,
    )


def _base_of_run(run: StoredRun, given: str | None) -> str:
    """The base of a run's model; raises `InputError` if it cannot be found from the run's configuration."""
    if given is None and "model" in run.objects:
        raise InputError(
            f"the model of the run in {run.folder} was passed as an object in Python; name its folder with --model."
        )
    name = given or run.config.model
    if given is None and Path(name).is_absolute() and not Path(name).exists():
        raise InputError(
            f"the model {name} of the run in {run.folder} does not exist any more; give its new path with --model."
        )
    return lasting_name(name)


def _warn_of_another_base(model: Model, trained_on: str) -> None:
    """Warn if the weights differ from those that the run was trained on, whatever their precision."""
    if trained_on not in [base_fingerprint(model.base, dtype) for dtype in (None, *DTYPES.values())]:
        warnings.warn(
            f"the weights of {model.path} are not those that the run was trained on; the model will compute something else.",
            stacklevel=3,
        )

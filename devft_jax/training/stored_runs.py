"""What a folder or name refers to, found from its small files alone: a run, a PEFT adapter or a model; and facts about a
run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from devft_jax.config.files import stored_config
from devft_jax.config.methods import algorithm_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.data.answer_ends import ends_of_texts
from devft_jax.data.prompts import find_template
from devft_jax.errors import InputError
from devft_jax.federated.algorithm import Algorithm
from devft_jax.models.huggingface.folder import CONFIG_FILE
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE
from devft_jax.models.huggingface.safetensors import read_json
from devft_jax.storage.run_folder import RunFolder
from devft_jax.storage.split_record import SplitRecord

Kind = Literal["run", "adapter", "model"]


def kind_of(folder: Path) -> Kind:
    """What a folder holds; a Hugging Face name and "bundled" count as a model.

    A folder with a PEFT adapter's configuration is an adapter, as in transformers, whatever else it holds.

    Args:
      folder: the path as the user gave it.

    Raises:
      InputError: its config.json cannot be read.
    """
    if (folder / ADAPTER_CONFIG_FILE).is_file():
        return "adapter"
    config = folder / CONFIG_FILE
    return "run" if config.is_file() and "model_type" not in read_json(config) else "model"


@dataclass(frozen=True)
class StoredRun:
    """A run as the files of its folder describe it.

    Attributes:
      folder: the run's folder.
      config: its options.
      objects: by option name, descriptions of the parts that were passed as objects in Python and are not in the folder.
    """

    folder: Path
    config: RunConfig
    objects: Mapping[str, str]

    @cached_property
    def algorithm(self) -> Algorithm:
        """The run's algorithm."""
        return algorithm_of(self.config)

    @property
    def adapter_folder(self) -> Path:
        """The folder of the adapter once the run is finished."""
        return self.folder / "adapter"

    @cached_property
    def split(self) -> SplitRecord | None:
        """The split of its data over clients; None if it has no split.json.

        Raises:
          InputError: split.json cannot be read.
        """
        return RunFolder(self.folder).read_split()

    @property
    def template(self) -> str:
        """The template used in training; what `auto` was resolved to depended on the data and is stored with the split.

        Raises:
          InputError: split.json cannot be read, or names no template.
        """
        if self.config.template != "auto":
            return self.config.template
        if self.split is None:
            raise InputError(f"{self.folder} has no split.json, which names its template; restore it, or give template.")
        find_template(self.split.template)
        return self.split.template

    def ends(self, tokenizer: Callable[[], Any]) -> list[int]:
        """Ids of the tokens that ended answers in training; empty if the split does not store them.

        Args:
          tokenizer: loads the run's tokenizer if it is needed.

        Raises:
          InputError: split.json cannot be read, or names a token that the tokenizer does not have.
        """
        texts = [] if self.split is None else self.split.ends_with
        return ends_of_texts(texts, tokenizer()) if texts else []

    def client_names(self) -> list[str]:
        """The run's clients, in the order of their rows in the bank.

        Raises:
          InputError: split.json does not name them.
        """
        if self.split is None or not self.split.clients:
            raise InputError(f"split.json in {self.folder} does not name the run's clients; restore it.")
        return [client.name for client in self.split.clients]

    def client_position(self, client: str | None) -> int | None:
        """The index of the client whose own model is wanted; None for the model of all clients.

        Args:
          client: the client's name in the split; None if none was given.

        Raises:
          InputError: the run has no models of single clients but one is named; it has only such models and none is named; or
            it has no client of this name.
        """
        named = f"the run in {self.folder} ({self.config.algorithm})"
        if self.algorithm.personal is None:
            if client is not None:
                raise InputError(f"{named} has one model for all clients; leave client '{client}' out.")
            return None
        if client is None and self.algorithm.has_global_model:
            return None
        names = self.client_names()
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        if client is None:
            raise InputError(f"{named} has no global model, but one for each client; choose one with --client: {shown}.")
        if client not in names:
            raise InputError(f"client '{client}' is not one of the run's: {shown}.")
        return names.index(client)


def read_run(folder: Path) -> StoredRun:
    """The run in a folder.

    Args:
      folder: a folder of kind "run".

    Raises:
      InputError: its config.json is not that of a run, or holds options that this version does not accept.
    """
    fields = read_json(folder / CONFIG_FILE)
    if "model" not in fields:
        raise InputError(f"{folder / CONFIG_FILE} describes neither a run nor a model; name another folder.")
    config, objects = stored_config(fields, folder)
    validate(config)
    return StoredRun(folder, config, objects)

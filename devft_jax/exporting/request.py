"""The request for an export: from which source, in which form, to which folder.

adapter            the adapter at full depth, in PEFT's format
merged             the model with that adapter merged into its weights, in Hugging Face's layout
submodel           a stage's submodel, its fused layers merged with its adapter, as a model of that depth
submodel-adapter   the bare submodel as a model, and its adapter in the subfolder `adapter`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.exporting.options import ExportOptions
from devft_jax.files import existing_folder
from devft_jax.inference.selected import lasting_name
from devft_jax.models.huggingface.safetensors import read_json
from devft_jax.options import check_options
from devft_jax.storage.ownership import EXPORT, EXPORT_FILE, claim


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
      options: the options of the export.
      max_shard_bytes: size of the largest file of weights.
    """

    options: ExportOptions
    max_shard_bytes: int

    @property
    def source(self) -> Path:
        """A run's folder, or a PEFT adapter's."""
        return Path(self.options.source).expanduser()

    @property
    def out(self) -> Path:
        """The folder to write, as an absolute path."""
        return Path(self.options.out).expanduser().absolute()

    def check(self) -> None:
        """Check everything that does not depend on the contents of the source.

        Raises:
          InputError: the form or the type is unknown, there is no source, or the folder to write holds something else.
        """
        check_options(self.options)
        existing_folder(self.source, "name a run's folder or a PEFT adapter's")
        if claim(self.out, EXPORT) and read_json(self.out / EXPORT_FILE) != self.to_plain():
            raise InputError(f"out {self.out} holds another export; name an absent or empty folder.")

    def to_plain(self) -> dict[str, Any]:
        """The contents of the file in an export's folder: two exports with the same values may replace each other."""
        asked = self.options
        return {
            "source": str(self.source.resolve()),
            "form": asked.form,
            "stage": asked.stage,
            **({} if asked.round is None else {"round": asked.round}),
            "client": asked.client,
            "model": None if asked.model is None else lasting_name(asked.model),
        }

"""The request for an export: from which source, in which form, to which folder.

adapter            the adapter at full depth, in PEFT's format
merged             the model with that adapter merged into its weights, in Hugging Face's layout
submodel           a stage's submodel, its fused layers merged with its adapter, as a model of that depth
submodel-adapter   the bare submodel as a model, and its adapter in the subfolder `adapter`
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from devft_jax.errors import InputError
from devft_jax.files import existing_folder
from devft_jax.models.huggingface.folder import named_from_anywhere
from devft_jax.models.huggingface.safetensors import DTYPES, read_json
from devft_jax.storage import EXPORT, EXPORT_FILE, claim
from devft_jax.training.submodels import model_path

Form = Literal["adapter", "merged", "submodel", "submodel-adapter"]

FULL_FORMS = ("adapter", "merged")
"""Forms of the model at full depth."""


def lasting_name(model: str) -> str:
    """A base as a path that is valid from any folder, or its Hugging Face name.

    Args:
      model: a folder, a Hugging Face name or "bundled".
    """
    return named_from_anywhere(str(model_path(model)))


@dataclass(frozen=True, kw_only=True)
class Request:
    """One export.

    Attributes:
      source: a run's folder, or a PEFT adapter's.
      out: the folder to write.
      form: one of the four forms above.
      stage: from 1, whose newest checkpoint is used; None for the run's newest.
      client: the client whose model to write, if every client has its own; None for the model of all.
      model: the base as the user gave it; None for the one that the source names.
      dtype: data type of stored model weights.
      max_shard_bytes: size of the largest file of weights.
    """

    source: Path
    out: Path
    form: Form
    stage: int | None
    client: str | None
    model: str | None
    dtype: str
    max_shard_bytes: int

    def check(self) -> None:
        """Check everything that does not depend on the contents of the source.

        Raises:
          InputError: the form or the type is unknown, there is no source, or the folder to write holds something else.
        """
        if self.form not in get_args(Form):
            raise InputError(f"form '{self.form}' is unknown; choose from {', '.join(get_args(Form))}.")
        if self.dtype not in ("auto", *DTYPES.values()):
            raise InputError(f"dtype {self.dtype!r} is unknown; choose from auto, {', '.join(DTYPES.values())}.")
        existing_folder(self.source, "name a run's folder or a PEFT adapter's")
        if claim(self.out, EXPORT) and read_json(self.out / EXPORT_FILE) != self.to_plain():
            raise InputError(f"out {self.out} holds another export; name an absent or empty folder.")

    def to_plain(self) -> dict[str, Any]:
        """The contents of the file in an export's folder: two exports with the same values may replace each other."""
        return {
            "source": str(self.source.resolve()),
            "form": self.form,
            "stage": self.stage,
            "client": self.client,
            "model": None if self.model is None else lasting_name(self.model),
        }

"""Writes an export: a PEFT folder, a model's folder, or both, and a file with the request."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from devft_jax.errors import RunError
from devft_jax.exporting.request import Request
from devft_jax.files import write_atomically
from devft_jax.models.adapter import Adapter
from devft_jax.models.huggingface.headers import stored_dtypes
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.peft.writing import check_finite, export_peft
from devft_jax.models.huggingface.safetensors import json_text, one_line
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.reporting.progress import readable_bytes
from devft_jax.storage.ownership import EXPORT_FILE


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
      folder: the folder that was written.
      what: what it is, in words.
      size: bytes of its weights.
      how: how to load it.
    """

    folder: Path
    what: str
    size: int
    how: str

    def __str__(self) -> str:
        """Everything in one line."""
        return f"wrote {self.what} ({readable_bytes(self.size)}) to {self.folder}; {self.how}"


def write_adapter(request: Request, adapter: Adapter, what: str, base: str | None, ends: Sequence[int]) -> Exported:
    """Write a PEFT folder.

    Args:
      request: where to write.
      adapter: a low-rank adapter, at the depth of its base.
      what: what it is, in words.
      base: the base that the folder names; None for none.
      ends: ids of the tokens that end its answers.

    Raises:
      InputError: a value of the adapter is not finite.
      RunError: the folder cannot be written.
    """
    check_finite(adapter)
    _begin(request)
    export_peft(adapter, request.out, base_model=base, answer_ends=ends)
    how = f"load it with PEFT: AutoPeftModelForCausalLM.from_pretrained('{request.out}')"
    return Exported(request.out, what, (request.out / ADAPTER_WEIGHTS_FILE).stat().st_size, how)


def write_model(request: Request, model: Model, adapter: Adapter | None, what: str, ends: Sequence[int]) -> Exported:
    """Write a model's folder.

    Args:
      request: where to write, in which types and file sizes.
      model: the base, loaded from a folder.
      adapter: merged into the weights; None for the base alone.
      what: what it is, in words.
      ends: ids of the tokens that end its answers.

    Raises:
      InputError: a value of the adapter is not finite.
      RunError: the folder cannot be written.
    """
    assert model.folder is not None
    if adapter is not None:
        check_finite(adapter)
    _begin(request)
    size = save_pretrained(
        request.out,
        model.config,
        model.base,
        adapter=adapter,
        dtype=stored_dtypes(model.folder) if request.options.dtype == "auto" else request.options.dtype,
        source=model.folder,
        answer_ends=ends,
        max_shard_bytes=request.max_shard_bytes,
    )
    how = f"load it with transformers: AutoModelForCausalLM.from_pretrained('{request.out}')"
    return Exported(request.out, what, size, how)


def write_both(request: Request, model: Model, adapter: Adapter, what: str, ends: Sequence[int]) -> Exported:
    """Write a model's folder, and its adapter in the subfolder `adapter`.

    Args:
      request: where to write, in which types and file sizes.
      model: the base, loaded from a folder.
      adapter: a low-rank adapter, at the depth of the base.
      what: what both are, in words.
      ends: ids of the tokens that end its answers.

    Raises:
      InputError: a value of the adapter is not finite.
      RunError: the folder cannot be written.
    """
    check_finite(adapter)
    folder = request.out / "adapter"
    _begin(request)
    # The adapter of an earlier export must never be left beside another model.
    (folder / ADAPTER_CONFIG_FILE).unlink(missing_ok=True)
    written = write_model(request, model, None, what, ends)
    export_peft(adapter, folder, base_model=str(request.out), answer_ends=ends)
    size = written.size + (folder / ADAPTER_WEIGHTS_FILE).stat().st_size
    how = f"load both with PEFT: AutoPeftModelForCausalLM.from_pretrained('{folder}')"
    return Exported(request.out, what, size, how)


def _begin(request: Request) -> None:
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        write_atomically(request.out / EXPORT_FILE, json_text(request.to_plain()))
    except OSError as error:
        raise RunError(f"the folder {request.out} cannot be written ({one_line(error)}); choose another folder.") from error

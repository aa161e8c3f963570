"""Loads the tokenizer in a model's folder."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.models.huggingface.folder import TOKENIZER_CONFIG_FILE, check_inside
from devft_jax.models.huggingface.safetensors import one_line, read_json
from devft_jax.models.huggingface.sentencepiece import MODEL_FILE, read_sentencepiece

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", TOKENIZER_CONFIG_FILE)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer stored in a model's folder; `tokenizer.model` alone needs the extra `sentencepiece`.

    Args:
      folder: the model's folder.

    Returns:
      A tokenizer of `transformers`.

    Raises:
      InputError: the folder has no tokenizer, an unreadable one, or one in an unsupported format.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"the model folder {folder} holds no tokenizer; add the tokenizer.json that the model was trained with."
        )
    check_inside(folder)
    # On import transformers recommends to install PyTorch, which this package does not use.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if (folder / MODEL_FILE).is_file() and not (folder / "tokenizer.json").is_file():
        # transformers reads these too, but for some texts gives other ids than the original.
        return read_sentencepiece(folder)
    settings = read_json(folder / TOKENIZER_CONFIG_FILE) if (folder / TOKENIZER_CONFIG_FILE).is_file() else {}
    _check_named_files(settings, folder / TOKENIZER_CONFIG_FILE)
    from transformers import AutoTokenizer

    try:
        # Explicit, because transformers would otherwise ask on standard input whether to run a folder's code.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        if "auto_map" in settings:
            raise InputError(
                f"{folder / TOKENIZER_CONFIG_FILE} names a tokenizer with its own code (auto_map), and code from "
                "a model's folder is never run; give a tokenizer.json, and a tokenizer_config.json without auto_map and "
                "with a tokenizer_class of transformers."
            ) from error
        raise InputError(f"the tokenizer in {folder} cannot be read ({one_line(error)}); restore its files.") from error


def _check_named_files(settings: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` if a tokenizer's settings name a file outside their folder, which transformers would read."""
    names = settings.get("fast_tokenizer_files") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) for name in names):
        raise InputError(
            f"fast_tokenizer_files {printable(repr(names)[:120])} in {path} are not names of files beside it; files "
            "outside the model's folder are not read: correct them."
        )

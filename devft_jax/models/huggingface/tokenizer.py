"""Loads the tokenizer in a model's folder."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.models.huggingface.folder import CONFIG_FILE, TOKENIZER_CONFIG_FILE, check_inside
from devft_jax.models.huggingface.safetensors import one_line, read_json
from devft_jax.models.huggingface.sentencepiece import MODEL_FILE, read_sentencepiece

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes of transformers that add nothing to `tokenizer.json`."""
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
    try:
        # Explicit, because transformers would otherwise ask on standard input whether to run a folder's code.
        return _reader(folder, settings).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception on a damaged file
        if "auto_map" in settings:
            raise InputError(
                f"{folder / TOKENIZER_CONFIG_FILE} names a tokenizer with its own code (auto_map), and code from "
                "a model's folder is never run; give a tokenizer.json, and a tokenizer_config.json without auto_map and "
                "with a tokenizer_class of transformers."
            ) from error
        raise InputError(f"the tokenizer in {folder} cannot be read ({one_line(error)}); restore its files.") from error


def _reader(folder: Path, settings: Mapping[str, Any]) -> Any:
    """The class of `transformers` that reads a folder's tokenizer.

    `AutoTokenizer` chooses it by the family of the model, for which it imports all of `transformers`, and PyTorch where that
    is installed: two seconds of a core. For LLaMA's family with a plain class it would choose the class that is named here.
    """
    plain = settings.get("tokenizer_class") in PLAIN_CLASSES and "auto_map" not in settings
    if plain and (folder / "tokenizer.json").is_file() and (folder / CONFIG_FILE).is_file():
        config = read_json(folder / CONFIG_FILE)
        if config.get("model_type") == "llama" and "auto_map" not in config:
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _check_named_files(settings: Mapping[str, Any], path: Path) -> None:
    """Raise `InputError` if a tokenizer's settings name a file outside their folder, which transformers would read."""
    names = settings.get("fast_tokenizer_files") or []
    if not isinstance(names, list) or not all(isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) for name in names):
        raise InputError(
            f"fast_tokenizer_files {printable(repr(names)[:120])} in {path} are not names of files beside it; files "
            "outside the model's folder are not read: correct them."
        )

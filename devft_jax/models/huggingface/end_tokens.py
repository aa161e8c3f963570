"""The tokens that end a model's answers, from its folder: `generation_config.json`, `config.json` and the tokenizer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.models.huggingface.folder import CONFIG_FILE, GENERATION_CONFIG_FILE
from devft_jax.models.huggingface.safetensors import read_json, shown


def end_token_ids(folder: Path, tokenizer: Any) -> tuple[int, ...]:
    """Ids that end an answer: those of `generation_config.json`, else of `config.json`, and the tokenizer's eos.

    Args:
      folder: the model's folder.
      tokenizer: the model's tokenizer; it may be the only one to know the token that ended completions in training.

    Raises:
      InputError: a file cannot be read, or holds something other than ids.
    """
    found: list[int] = []
    for path in (folder / GENERATION_CONFIG_FILE, folder / CONFIG_FILE):
        found = found or (eos_ids_of(read_json(path), path) if path.is_file() else [])
    if tokenizer.eos_token_id is not None:
        found = [*found, tokenizer.eos_token_id]
    return tuple(dict.fromkeys(found))


def eos_ids_of(fields: Mapping[str, Any], path: Path) -> list[int]:
    """The ids of `eos_token_id`, one or a list, in a config.json or generation_config.json; empty if there are none.

    Args:
      fields: fields of the file.
      path: path of the file, for messages.

    Raises:
      InputError: they are not token ids.
    """
    value = fields.get("eos_token_id")
    found = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(item) is int and 0 <= item < 2**31 for item in found):
        raise InputError(f"eos_token_id {shown(value)} in {path} is neither a token id nor a list of them; correct it.")
    return list(dict.fromkeys(found))


def generation_settings(source: Path | None, ids: Mapping[str, Any], answer_ends: Sequence[int]) -> dict[str, Any] | None:
    """The fields of generation_config.json with which generation also stops at `answer_ends`.

    Args:
      source: folder of the model from which the weights come, if any.
      ids: ids of the special tokens, used if the source has no such file.
      answer_ends: ids of the tokens that end answers.

    Returns:
      The fields; None if the source's own file already has these ids.
    """
    file = None if source is None else source / GENERATION_CONFIG_FILE
    own = read_json(file) if file is not None and file.is_file() else {}
    fields = {name: value for name, value in ids.items() if own.get(name) is None} | own
    present = eos_ids_of(fields, file or Path(CONFIG_FILE))
    wanted = list(dict.fromkeys([*present, *answer_ends]))
    return None if wanted == present else fields | {"eos_token_id": wanted}

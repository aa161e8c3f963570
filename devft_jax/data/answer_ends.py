"""At which tokens answers end: what ended them in training ends them in generation and in exports.

A chat template may end a turn with a special token that is not the tokenizer's eos. The run's split.json records the tokens
in which its examples ended (`ends_with`, as texts); the adapter that is made of the run takes them along as the ids of a
generation_config.json, as transformers has them beside a model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devft_jax.data.federated_data import FederatedData
from devft_jax.data.prompts import renderer, tokenizer_name
from devft_jax.data.records import Record
from devft_jax.errors import InputError
from devft_jax.files import printable
from devft_jax.models.huggingface.end_tokens import eos_ids_of
from devft_jax.models.huggingface.folder import GENERATION_CONFIG_FILE
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.safetensors import read_json

_PROBE = Record(instruction="a", input="", output="b", category=None, origin="a probe of the template")


def ends_of_data(data: FederatedData, model: Model) -> list[int]:
    """Ids of the tokens in which trained answers ended; empty where the data's tokenizer is not the model's.

    Args:
      data: that was trained on.
      model: that was trained.
    """
    if not data.ends_with or not model.has_tokenizer:
        return []
    vocabulary = model.tokenizer.get_vocab()
    return [vocabulary[text] for text in data.ends_with if text in vocabulary]


def ends_of_texts(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Ids of the tokens in which a run's trained answers ended.

    Args:
      texts: of these tokens, as the run's split records them.
      tokenizer: the run's.

    Raises:
      InputError: the tokenizer lacks one of them.
    """
    vocabulary = tokenizer.get_vocab()
    for text in texts:
        if text not in vocabulary:
            raise InputError(
                f"trained answers end in {printable(text)!r}, which the tokenizer {tokenizer_name(tokenizer)!r} does not "
                "have; give the model that was trained."
            )
    return [vocabulary[text] for text in texts]


def ends_of_template(template: str, tokenizer: Any) -> list[int]:
    """The token in which a template ends an answer, as it would in training; empty where that is the tokenizer's eos.

    Args:
      template: not `auto`.
      tokenizer: of `transformers`.
    """
    if template != "chat":
        return []
    try:
        answer = renderer(template, tokenizer)(_PROBE)[-1].text
    except InputError:
        # Some templates want more of a conversation than this; they word what is asked, or refuse it, by themselves.
        return []
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return [token for token in ids[-1:] if token in special]


def ends_of_adapter(folder: Path) -> list[int]:
    """Ids at which the answers of a PEFT adapter end, as the generation_config.json beside it says; empty without one.

    Args:
      folder: of the adapter.
    """
    file = folder / GENERATION_CONFIG_FILE
    return eos_ids_of(read_json(file), file) if file.is_file() else []

"""The tokens that end answers: those that ended them in training also end them in generation and in exports.

A chat template may end a turn with a special token other than the tokenizer's eos. The run's split.json records the tokens
that ended its examples (`ends_with`, as texts); the run's adapter stores them as the ids of a generation_config.json, as
transformers does for a model.
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
    """Ids of the tokens that ended trained answers; empty if the data's tokenizer is not the model's.

    Args:
      data: the training data.
      model: the trained model.
    """
    if not data.ends_with or not model.has_tokenizer:
        return []
    vocabulary = model.tokenizer.get_vocab()
    return [vocabulary[text] for text in data.ends_with if text in vocabulary]


def ends_of_texts(texts: Sequence[str], tokenizer: Any) -> list[int]:
    """Ids of the tokens that ended a run's trained answers.

    Args:
      texts: texts of these tokens, as recorded in the run's split.
      tokenizer: the run's tokenizer.

    Raises:
      InputError: the tokenizer does not have one of them.
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
    """The token with which a template ends an answer in training; empty if that is the tokenizer's eos.

    Args:
      template: a template other than `auto`.
      tokenizer: a tokenizer of `transformers`.
    """
    if template != "chat":
        return []
    try:
        answer = renderer(template, tokenizer)(_PROBE)[-1].text
    except InputError:
        # Some templates require more of a conversation than this one; they supply the question themselves, or refuse.
        return []
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return [token for token in ids[-1:] if token in special]


def ends_of_adapter(folder: Path) -> list[int]:
    """Ids of the tokens that end answers of a PEFT adapter, from the generation_config.json beside it; empty without one.

    Args:
      folder: the adapter's folder.
    """
    file = folder / GENERATION_CONFIG_FILE
    return eos_ids_of(read_json(file), file) if file.is_file() else []

"""A model holds its tokenizer back until it is asked for."""

import pytest

from devft_jax.errors import InputError
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.tokenizer import load_tokenizer


def test_a_model_without_tokenizer_says_so_when_asked(folder, config, base):
    with pytest.raises(InputError, match=f"{folder} holds no tokenizer; add the tokenizer.json"):
        _ = load_pretrained(folder).tokenizer
    with pytest.raises(InputError, match="the model has no tokenizer; pass one to Model"):
        _ = Model(config, base).tokenizer
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=f"the tokenizer in {folder} cannot be read"):
        load_tokenizer(folder)


def test_the_tokenizer_is_read_once_and_when_asked(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "grow": 1, "deep": 2}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model = load_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    assert model.tokenizer("grow deep wide")["input_ids"] == [1, 2, 0]
    assert model.tokenizer is model.tokenizer
    given = object()
    assert Model(model.config, model.base, given).tokenizer is given


def test_a_loaded_model_knows_its_folder(source):
    model = load_pretrained(source)
    assert model.tokenizer is not None
    assert model.folder == source
    assert Model(model.config, model.base, object()).folder is None

"""A lone tokenizer.model: read as SentencePiece reads it, or refused with the remedy."""

import base64
import io
import json
import random
import shutil
import sys

import pytest

from devft_jax.data.encoding import leading_tokens
from devft_jax.errors import InputError
from devft_jax.models.huggingface import sentencepiece as sentencepiece_model
from devft_jax.models.huggingface.tokenizer import load_tokenizer


def random_texts(count):
    rng = random.Random(0)
    letters = "abc  \n\té你🙂1.,\u00a0\u3000\r"
    return ["".join(rng.choices(letters, k=rng.randrange(24))) for _ in range(count)]


def train(folder, **options):
    """A small model of its own, as `tokenizer.model` in the folder."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    written = io.BytesIO()
    text = ["the cat sat on the mat", "a cat, a mat and 12 hats", "hello to you  and  the rest"] * 20
    defaults = {"model_type": "bpe", "vocab_size": 330, "byte_fallback": True, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_writer=written, **defaults | options)
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())


@pytest.mark.parametrize(
    "options",
    [
        {"normalization_rule_name": "identity", "remove_extra_whitespaces": False},
        {"normalization_rule_name": "nmt_nfkc"},
        {"normalization_rule_name": "identity", "add_dummy_prefix": False},
    ],
)
def test_ids_are_those_of_sentencepiece(tmp_path, options):
    original = train(tmp_path, **options)
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    for text in ["the cat  sat on 12 hats", " a cat ", *random_texts(300)]:
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == original.encode(text)
    assert tokenizer.decode(tokenizer("a cat, a mat", add_special_tokens=False)["input_ids"]) == "a cat, a mat"


def test_special_tokens_and_chat_template_come_from_the_settings(tmp_path):
    train(tmp_path)
    settings = {"pad_token": "<unk>", "eos_token": {"content": "<s>"}, "chat_template": "{{ messages }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<unk>", "<s>", "<s>")
    assert tokenizer.chat_template == "{{ messages }}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"330": {"content": "<pad>"}}}))
    with pytest.raises(InputError, match=r"adds tokens that are not in tokenizer\.model; put the tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_text_begins_with_bos_unless_the_settings_say_otherwise(tmp_path):
    train(tmp_path)
    bare = load_tokenizer(tmp_path)("a cat", add_special_tokens=False)["input_ids"]
    for settings, lead in (({}, [1]), ({"add_bos_token": True}, [1]), ({"add_bos_token": False}, [])):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer("a cat")["input_ids"] == [*lead, *bare]
        assert leading_tokens(tokenizer) == lead


def test_a_model_of_another_kind_and_a_damaged_one_are_refused(tmp_path):
    train(tmp_path, model_type="unigram", vocab_size=280)
    with pytest.raises(InputError, match=r"of a kind other than BPE; put the tokenizer\.json"):
        load_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"\xff" + path.read_bytes()[:500])
    with pytest.raises(InputError, match="cannot be read as a SentencePiece model"):
        load_tokenizer(tmp_path)


def test_what_cannot_be_followed_exactly_is_refused(tmp_path, monkeypatch):
    train(tmp_path)
    monkeypatch.setattr(sentencepiece_model, "_merges", lambda *_: [])
    with pytest.raises(InputError, match=r"cannot be converted exactly \(it splits 'Hello world"):
        load_tokenizer(tmp_path)


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(InputError, match=r"pip install sentencepiece protobuf`, or put the tokenizer\.json of"):
        load_tokenizer(tmp_path)


def test_a_tiktoken_file_asks_for_tokenizer_json(tmp_path):
    lines = [f"{base64.b64encode(bytes([n])).decode()} {n}" for n in range(256)]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"tiktoken's format, which is not supported; put the tokenizer\.json of the model"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["llama2", "open_llama", "llama3"])
def test_published_models(shared, tmp_path, name):
    shutil.copy(shared / "data" / "tokenizers" / f"{name}_tokenizer.model", tmp_path / "tokenizer.model")
    if name == "llama3":
        with pytest.raises(InputError, match="tiktoken"):
            load_tokenizer(tmp_path)
        return
    sentencepiece = pytest.importorskip("sentencepiece")
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path)
    assert (len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id) == (32000, 1, 2)
    for text in random_texts(500):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == original.encode(text)

"""A saved model, and one with a tokenizer."""

import pytest

from devft_jax.models.huggingface.writing import save_pretrained
from tests.models.huggingface.checkpoints import edit_config


@pytest.fixture
def folder(tmp_path, config, base):
    save_pretrained(tmp_path / "model", config, base, dtype="float32")
    return tmp_path / "model"


@pytest.fixture
def source(tmp_path, config, base, word_tokenizer):
    """A model with a tokenizer and settings of generation, and ids of its own."""
    save_pretrained(tmp_path / "source", config, base, bos_id=5, eos_id=6)
    word_tokenizer().save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "generation_config.json").write_text('{"top_p": 0.5}')
    (tmp_path / "source" / "chat_template.jinja").write_text("{{ messages }}")
    edit_config(tmp_path / "source", eos_token_id=[6, 7], pad_token_id=3)
    return tmp_path / "source"

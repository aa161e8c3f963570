"""How answers go out; the file and the screen are tested through the command."""

import pytest

from devft_jax.inference.answers import converse
from devft_jax.inference.options import ModelOptions
from devft_jax.inference.respondent import open_respondent
from devft_jax.models.generation.options import GenerationOptions
from tests.inference.folders import write_folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory, word_tokenizer):
    return write_folders(tmp_path_factory.mktemp("folders"), word_tokenizer)


def test_a_conversation_goes_on_after_a_prompt_that_is_too_long(capsys, folders, monkeypatch):
    lines = iter(["a b c", "", "a " * 80, "d"])

    def read(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    respondent = open_respondent(folders["run"], ModelOptions())
    written = []
    converse({"answer": respondent}, GenerationOptions(max_new_tokens=6), written.append)
    shown = capsys.readouterr()
    assert [row["instruction"] for row in written] == ["a b c", "d"]
    assert shown.out == f"{written[0]['completion']}\n{written[1]['completion']}\n\n"
    assert "prompt 2 has 81 tokens" in shown.err

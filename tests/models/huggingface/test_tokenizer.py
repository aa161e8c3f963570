"""A tokenizer is read from its folder, and no code is run."""

import io
import json
import shutil
import subprocess
import sys

import pytest

from devft_jax.errors import InputError
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.tokenizer import load_tokenizer
from devft_jax.training.submodels import bundled_model
from tests.models.huggingface.checkpoints import edit_config


@pytest.mark.parametrize(
    "names", [["../tokenizer.4.0.0.json"], ["tokenizer.4.0.0.json", "/tmp/tokenizer.4.0.json"], "a", [5]]
)
def test_a_tokenizer_names_nothing_outside_the_folder(tmp_path, folder, word_tokenizer, names):
    word_tokenizer().save_pretrained(folder)
    shutil.copy(folder / "tokenizer.json", tmp_path / "tokenizer.4.0.0.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"fast_tokenizer_files": names}))
    with pytest.raises(
        InputError, match=r"fast_tokenizer_files .* in .*tokenizer_config.json are not names of files beside it"
    ):
        load_tokenizer(folder)
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    named = {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | named))
    assert load_tokenizer(folder)("a b")["input_ids"]


def test_a_plain_tokenizer_is_read_without_the_rest_of_transformers():
    folder = bundled_model()
    # In a process of its own, because other tests import what must not be imported here.
    code = (
        "import sys, pathlib; from devft_jax.models.huggingface.tokenizer import load_tokenizer; "
        f"load_tokenizer(pathlib.Path({str(folder)!r})); "
        "print([name in sys.modules for name in ('torch', 'transformers.models.auto')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found == "[False, False]\n"
    from transformers import AutoTokenizer

    mine, other = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(mine) is type(other)
    for text in ("the cat has 12 hats", " two  spaces\n\n", "<s> é", ""):
        assert mine(text)["input_ids"] == other(text)["input_ids"]
    assert mine.special_tokens_map == other.special_tokens_map


TRAP = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Trap: ...\n"


@pytest.mark.parametrize("auto_map", [["trap.Trap", None], {"AutoTokenizer": ["trap.Trap", None]}, "trap.Trap", 5], ids=str)
@pytest.mark.parametrize("answer", ["y\n", "\n"])
def test_no_code_from_a_folder_is_run_and_nobody_asked(folder, word_tokenizer, monkeypatch, auto_map, answer):
    word_tokenizer().save_pretrained(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"auto_map": auto_map}
    (folder / "trap.py").write_text(TRAP)
    (folder / "tokenization_trap.py").write_text(TRAP)
    edit_config(folder, auto_map={"AutoConfig": "trap.Trap", "AutoModelForCausalLM": "trap.Trap"})
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    for kind in ("TrapTokenizer", settings["tokenizer_class"]):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": kind}))
        try:
            load_pretrained(folder).tokenizer("a b")
        except InputError as error:
            assert "(auto_map), and code from a model's folder is never run" in str(error)  # noqa: PT017
    assert sys.stdin.read() == answer
    assert not (folder / "ran").exists()

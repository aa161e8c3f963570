from pathlib import Path

import pytest

from devft_jax.errors import InputError
from devft_jax.files import cache_folder, checked_path, existing_folder, printable


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "out is empty"),
        ("a\0b", "NUL character"),
        ("a\udcffb", "not valid UTF-8"),
        ("a" * 256, "too long for a file name"),
        ("a/" * 2048, "too long for a file name"),
        ("~nobody-has-this-name/x", "unknown home folder"),
    ],
)
def test_what_no_file_is_called_is_one_sentence(value, says):
    with pytest.raises(InputError) as caught:
        checked_path(value, "out")
    assert says in str(caught.value)
    assert str(caught.value).startswith("out ")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 250


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert checked_path("~/x", "out") == tmp_path / "x"
    assert checked_path("a" * 255, "out") == Path("a" * 255)


def test_a_file_is_not_told_to_be_absent(tmp_path):
    (tmp_path / "a").write_text("x")
    assert existing_folder(tmp_path, "name another") == tmp_path
    with pytest.raises(InputError, match=r"/a is a file, not a folder; name another\.$"):
        existing_folder(tmp_path / "a", "name another")
    with pytest.raises(InputError, match=r"/b does not exist; name another\.$"):
        existing_folder(tmp_path / "b", "name another")


@pytest.mark.parametrize(("value", "folder"), [(None, ".cache/devft_jax"), ("", ".cache/devft_jax"), ("~/x", "x")])
def test_the_cache_has_one_place(value, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DEVFT_CACHE", raising=False)
    if value is not None:
        monkeypatch.setenv("DEVFT_CACHE", value)
    assert cache_folder() == tmp_path / folder


def test_control_characters_are_shown_as_escapes():
    assert printable("a\x1b[31mred\x07\n") == r"a\x1b[31mred\x07\x0a"
    assert printable("a\u202eb\ud800\x9b") == r"a\u202eb\ud800\x9b"
    assert printable("Zoë \U0001f600\n", keep="\n") == "Zoë \U0001f600\n"

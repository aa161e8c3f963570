import os

import pytest

from devft_jax.files import exclusive_temporary, write_atomically


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    assert path.read_text() == "two"
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_a_file_has_the_permissions_that_new_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def write():
        with exclusive_temporary(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_link_is_written_through(tmp_path):
    target = tmp_path / "target"
    target.write_text("precious")
    path = tmp_path / "folder" / "a"
    path.parent.mkdir()
    path.symlink_to(target)
    (path.parent / ".a.partial").symlink_to(target)
    write_atomically(path, "new")
    assert target.read_text() == "precious"
    assert path.read_text() == "new"
    assert not path.is_symlink()


def test_long_names_leave_room(tmp_path):
    write_atomically(tmp_path / ("a" * 255), "x")
    assert (tmp_path / ("a" * 255)).read_text() == "x"

"""A model's files are in its folder, or what is fetched of its name, and nothing outside is read."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import chex
import pytest
from safetensors.numpy import load_file

from devft_jax.errors import InputError
from devft_jax.models.huggingface.folder import INDEX_FILE, WEIGHTS_FILE
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from tests.models.huggingface.checkpoints import split_into_shards


def test_refuses_what_is_no_model_folder(tmp_path):
    with pytest.raises(InputError, match=r"the model folder .*/absent/x does not exist"):
        load_pretrained(tmp_path / "absent" / "x")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give the folder"):
        load_pretrained(tmp_path / "file")


def test_a_name_that_hugging_face_does_not_give(monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(name, **options):
        asked.append((name, options))
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(InputError, match=r"acme/tiny is not a local folder .* \(no network\); check the name"):
        load_pretrained("acme/tiny")
    [(name, options)] = asked
    assert name == "acme/tiny"
    wanted = ("model.safetensors.index.json", "config.json", "tokenizer.model", "merges.txt", "chat_template.jinja")
    fetched = [name for name in wanted if any(fnmatch(name, pattern) for pattern in options["allow_patterns"])]
    assert fetched == list(wanted)
    others = ("pytorch_model.bin", "model.pth", "modeling_custom.py", "consolidated.safetensors")
    assert not [name for name in others if any(fnmatch(name, pattern) for pattern in options["allow_patterns"])]


def test_a_hugging_face_name_loads_its_snapshot(monkeypatch, folder, base):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(folder))
    model = load_pretrained("acme/tiny")
    assert model.path == "acme/tiny"
    chex.assert_trees_all_equal(model.base, base)


@pytest.mark.parametrize("shards", [False, True])
def test_exactly_the_weights_that_the_index_names_are_fetched(monkeypatch, tmp_path, folder, base, shards):
    """From a repository that holds its weights in other forms too, through links like those of Hugging Face's cache."""
    import huggingface_hub

    names = split_into_shards(folder) if shards else [WEIGHTS_FILE]
    for other in ("consolidated.safetensors", "model.fp16.safetensors", "pytorch_model.bin"):
        (folder / other).write_bytes(b"twice the size")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot, blobs = tmp_path / "hub" / "snapshots" / commit, tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    shutil.copytree(folder, blobs)
    revisions = []

    def fetch(name, allow_patterns, ignore_patterns, revision=None):
        revisions.append(revision)
        for file in folder.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns) and not (snapshot / file.name).exists():
                (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / file.name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    chex.assert_trees_all_equal(load_pretrained("acme/tiny").base, base)
    assert revisions == [None, commit]
    assert sorted(file.name for file in snapshot.glob("*.safetensors")) == sorted(names)


FOREIGN_SHARDS = ["../secret.safetensors", "/etc/secret.safetensors", "sub/x.safetensors", "a\\b.safetensors", "..", ""]


NO_SHARDS = [".x.safetensors", "model.bin", "*.safetensors", "a\nb.safetensors", "a\0.safetensors", "a\x1b[2J.safetensors"]


@pytest.mark.parametrize("shard", FOREIGN_SHARDS + NO_SHARDS)
def test_an_index_names_nothing_outside_the_folder(tmp_path, folder, shard):
    shutil.copy(folder / WEIGHTS_FILE, tmp_path / "secret.safetensors")
    names = sorted(load_file(folder / WEIGHTS_FILE))
    (folder / WEIGHTS_FILE).unlink()
    (folder / INDEX_FILE).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    with pytest.raises(InputError, match="which is not the name of a safetensors file beside it; files outside") as raised:
        load_pretrained(folder)
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", INDEX_FILE, "x.jinja"])
def test_links_out_of_the_folder_are_not_followed(tmp_path, folder, name):
    secret = tmp_path / "secret"
    if (folder / name).exists():
        shutil.move(folder / name, secret)
    else:
        secret.write_text("{}")
    (folder / name).symlink_to(secret)
    with pytest.raises(InputError, match=rf"{name} is a link to {secret}, outside the folder, where only weights are"):
        load_pretrained(folder)


@pytest.mark.parametrize("shards", [False, True])
def test_weights_may_be_links_to_another_disk_and_those_that_lead_nowhere_are_named(tmp_path, folder, config, base, shards):
    if shards:
        save_pretrained(folder, config, base, max_shard_bytes=2000)
    (tmp_path / "disk").mkdir()
    names = [path.name for path in folder.glob("*.safetensors")]
    assert (len(names) > 1) == shards
    for number, name in enumerate(names):
        # As stores name them that keep files by their content.
        shutil.move(folder / name, tmp_path / "disk" / str(number))
        (folder / name).symlink_to(tmp_path / "disk" / str(number))
    chex.assert_trees_all_equal(load_pretrained(folder).base, base)
    (tmp_path / "disk" / "0").unlink()
    with pytest.raises(InputError, match=rf"{names[0]} is a link to \S+disk/0, which cannot be read \(No such file"):
        load_pretrained(folder)


def test_links_within_the_folder_and_to_it_are_followed(tmp_path, folder, base):
    shutil.move(folder / WEIGHTS_FILE, folder / "own.safetensors")
    (folder / WEIGHTS_FILE).symlink_to("own.safetensors")
    (tmp_path / "link").symlink_to(folder)
    # What is not read may lead anywhere.
    (folder / "data").symlink_to("/etc")
    chex.assert_trees_all_equal(load_pretrained(tmp_path / "link").base, base)

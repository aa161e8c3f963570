"""What a folder or name stands for."""

import json
from pathlib import Path

import pytest

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.errors import InputError
from devft_jax.training.stored_runs import kind_of, read_run
from tests.run_records import split_record


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config.json": {"model": "bundled"}}, "run"),
        ({"config.json": {"model_type": "llama"}}, "model"),
        ({"adapter_config.json": {}}, "adapter"),
        # As transformers has it: an adapter that was saved into a model's folder.
        ({"config.json": {"model_type": "llama"}, "adapter_config.json": {}}, "adapter"),
        ({}, "model"),
    ],
    ids=str,
)
def test_a_folder_is_what_its_small_files_say(tmp_path, files, kind):
    for name, fields in files.items():
        (tmp_path / name).write_text(json.dumps(fields))
    assert kind_of(tmp_path) == kind


def test_what_is_no_folder_is_a_models_name():
    assert kind_of(Path("bundled")) == kind_of(Path("somebody/a-model")) == "model"


def test_the_client_that_is_meant(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(split_record(*"abc").to_plain()))

    def position(algorithm, client):
        (tmp_path / "config.json").write_text(json.dumps(to_plain(RunConfig(algorithm=algorithm))))
        return read_run(tmp_path).client_position(client)

    assert position("fedit", None) is None
    assert position("local-only", "b") == 1
    with pytest.raises(InputError, match="has one model for all clients; leave client 'b' out"):
        position("fedit", "b")
    with pytest.raises(InputError, match="has no global model, but one for each client; choose one with --client: a, b, c"):
        position("local-only", None)
    with pytest.raises(InputError, match="client 'd' is not one of the run's: a, b, c"):
        position("local-only", "d")

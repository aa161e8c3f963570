"""The built-in shapes against the published numbers of parameters."""

import pytest

from devft_jax.models.architecture import ARCHITECTURES
from devft_jax.models.base import parameter_count
from devft_jax.models.huggingface.families import read_config
from devft_jax.models.huggingface.reading import model_architecture
from devft_jax.models.quantization import base_shapes

PARAMETERS = {
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "huggyllama/llama-30b": 32_528_943_616,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_number_of_parameters_is_the_published_one(name):
    assert parameter_count(base_shapes(ARCHITECTURES[name], dtype="bfloat16")) == PARAMETERS[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_known_name_needs_no_download(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("devft_jax.models.huggingface.reading.model_folder", None)
    assert model_architecture(name) is ARCHITECTURES[name]


def test_a_folders_own_config_goes_first(monkeypatch, tmp_path):
    from devft_jax.training.submodels import bundled_model

    name = "meta-llama/Llama-2-7b-hf"
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text((bundled_model() / "config.json").read_text())
    monkeypatch.chdir(tmp_path)
    assert model_architecture(name).layers == 16


def test_of_an_unknown_name_the_config_alone_is_fetched(monkeypatch, tmp_path):
    from devft_jax.training.submodels import bundled_model

    asked = []

    def fetch(name, allow_patterns, ignore_patterns, revision):
        asked.append((name, allow_patterns))
        return str(bundled_model())

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert model_architecture("somebody/a-model") == read_config(bundled_model() / "config.json")
    assert asked == [("somebody/a-model", ["config.json"])]

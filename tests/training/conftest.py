"""What the tests of training share."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.tiny_run import write_run_inputs


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory, word_tokenizer):
    """Two stages of two rounds each; the first round of each is evaluated, the second saved."""
    inputs = write_run_inputs(tmp_path_factory.mktemp("two_stages"), word_tokenizer)
    return dataclasses.replace(inputs, capacities=(2, 4), rounds=4, evaluate_every=1, checkpoint_every=2)


@pytest.fixture(scope="session")
def config(tmp_path_factory, word_tokenizer):
    return write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)


@pytest.fixture(scope="session")
def tiny(config):
    """The folder of the run's model and data."""
    return Path(config.model).parent


@pytest.fixture(scope="session")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run = train(dataclasses.replace(config, out=str(folder)), progress=Progress(quiet=True))
    return run


@pytest.fixture
def copied(finished, config, tmp_path):
    """A copy of the finished run's folder to do harm to, and the configuration that goes on with it."""
    folder = tmp_path / "copied"
    shutil.copytree(finished.folder, folder)
    return dataclasses.replace(config, out=str(folder))

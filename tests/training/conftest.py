"""What the tests of training share."""

import dataclasses

import pytest

from tests.tiny_run import write_run_inputs


@pytest.fixture(scope="session")
def two_stages(tmp_path_factory, word_tokenizer):
    """Two stages of two rounds each; the first round of each is evaluated, the second saved."""
    inputs = write_run_inputs(tmp_path_factory.mktemp("two_stages"), word_tokenizer)
    return dataclasses.replace(inputs, capacities=(2, 4), rounds=4, evaluate_every=1, checkpoint_every=2)

"""Objects in place of names are checked before anything is compiled or written."""

import dataclasses

import jax.numpy as jnp
import pytest

from devft_jax.config.run_config import RunConfig
from devft_jax.developmental import EndToEnd, Growth
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.reporting import Progress
from devft_jax.training.callbacks import Callback
from devft_jax.training.given import check_given_algorithm, check_given_growth
from devft_jax.training.run import train
from tests.federated.harness import TWO
from tests.tiny import CONFIG
from tests.tiny_run import write_run_inputs

RUN = RunConfig(clients_per_round=2, targets=("v", "down"), rank=2)


def unweighted(config=TWO):
    """FedIT whose contributions forget the weight."""
    plain = fedit(config)

    def contribution(up, share):
        return plain.contribution(up, share.replace(weight=jnp.float32(1.0)))

    return dataclasses.replace(plain, name="unweighted", contribution=contribution)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_our_own_algorithms_may_be_given(name):
    check_given_algorithm(ALGORITHMS[name](TWO), CONFIG, RUN)


def test_what_breaks_a_law_is_refused():
    with pytest.raises(InputError, match=r"unweighted breaks the law 'A contribution is zero at weight zero\.'"):
        check_given_algorithm(unweighted(), CONFIG, RUN)


@pytest.mark.parametrize(("given", "words"), [(fedit, "the function fedit"), ("fedit", "an object of str")])
def test_what_is_no_algorithm_is_refused(given, words):
    with pytest.raises(InputError, match=f"algorithm is {words}, not an Algorithm; pass the record"):
        check_given_algorithm(given, CONFIG, RUN)


def test_a_growth_that_contradicts_itself_is_refused():
    class Unshared(Growth):
        def next(self, stage, tree, history, key):
            return None

        def depths(self, num_layers):
            return (2, num_layers)

        def stage_rounds(self, rounds, num_layers):
            return (rounds, rounds)

    check_given_growth(EndToEnd(), 4)
    with pytest.raises(InputError, match=r"Unshared breaks the law .* add up to 2000"):
        check_given_growth(Unshared(), 4)


def test_nothing_is_written_or_compiled_for_them(tmp_path, word_tokenizer, monkeypatch):
    config = write_run_inputs(tmp_path, word_tokenizer)
    monkeypatch.setattr("devft_jax.runtime.compiled.CompiledPrograms.call", None)
    out = tmp_path / "out"
    with pytest.raises(InputError, match="unweighted breaks the law"):
        train(dataclasses.replace(config, out=str(out)), algorithm=unweighted(config), progress=Progress(lambda line: None))
    assert not out.exists() or not list(out.glob("*.json*"))


class Idle(Callback):
    """Does nothing."""


@pytest.mark.parametrize(
    ("config", "given", "sentence"),
    [
        ("demo", {}, r"^config is an object of str, not a RunConfig; pass RunConfig\(\.\.\.\) or preset\(\.\.\.\)\.$"),
        (RUN, {"model": "some/model"}, "^model is an object of str, not a Model; pass an opened model, or name one"),
        (RUN, {"data": "a.jsonl"}, "^data is an object of str, not a FederatedData; pass the data itself, or name it"),
        (RUN, {"callbacks": Idle()}, "^callbacks is not a list but an object of Idle; pass a list"),
        (RUN, {"callbacks": [Idle]}, "^an entry of callbacks is the class Idle, not a Callback; pass instances"),
    ],
)
def test_arguments_of_another_kind_are_refused(config, given, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=sentence):
        train(config, **given)
    assert not list(tmp_path.iterdir())

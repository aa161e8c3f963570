"""Which of a run's models is meant: of which checkpoint, and of which client."""

import dataclasses

import jax
import numpy as np
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.errors import InputError
from devft_jax.exporting.export import export
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.inference.prompts import to_record
from devft_jax.inference.respondent import open_respondent
from devft_jax.inference.selected import select
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.tiny_run import MODEL, write_run_inputs


@pytest.fixture(scope="module")
def run(tmp_path_factory, word_tokenizer):
    """The folder of a run in which every client has its own model: two stages of a round each, both saved."""
    config = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)
    changes = {"algorithm": "local-only", "capacities": (2, 4), "rounds": 2, "clients_per_round": 3, "checkpoint_every": 1}
    folder = tmp_path_factory.mktemp("runs") / "own"
    train(dataclasses.replace(config, out=str(folder), devices=1, **changes), progress=Progress(quiet=True))
    return folder


def selected(run, **options):
    return select(str(run), SelectionOptions(**options))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))


def test_a_checkpoint_is_chosen_by_its_stage_or_its_round(run):
    first, last = selected(run, client="client_0", round=1), selected(run, client="client_0")
    assert (first.stage, first.round, first.client) == (1, 1, "client_0")
    assert (last.stage, last.round) == (2, 2)
    assert first.name == f"the adapter of client 'client_0' of {run} after round 1 of 2"
    assert same(first.adapter, selected(run, client="client_0", stage=1).adapter)
    assert same(last.adapter, selected(run, client="client_0", round=2).adapter)
    assert not same(first.adapter, last.adapter)
    assert not same(last.adapter, selected(run, client="client_1").adapter)


def test_what_is_asked_is_what_is_exported(run, tmp_path):
    export(run, tmp_path / "adapter", client="client_2", round=1)
    asked = selected(run, client="client_2", stage=1)
    assert same(asked.adapter, import_peft(tmp_path / "adapter", MODEL))
    prompts, options = [to_record("a b", "here")], GenerationOptions(max_new_tokens=5)
    own = open_respondent(str(run), ModelOptions(), SelectionOptions(client="client_2", round=1))
    exported = open_respondent(str(tmp_path / "adapter"), ModelOptions(dtype="float32"))
    assert own.source.name == asked.name
    assert own.answer(prompts, options) == exported.answer(prompts, options)
    words = ["--client", "client_2", "--round", "1", "--prompt", "a b", "--max-new-tokens", "5"]
    assert run_command(["generate", str(run), *words]) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "has no global model, but one for each client; choose one with --client: client_0, client_1, client_2"),
        ({"client": "x"}, "client 'x' is not one of the run's"),
        ({"client": "client_0", "round": 3}, "keeps no checkpoint of round 3; choose from 1, 2"),
        ({"client": "client_0", "stage": 3}, "stage 3 is outside 1 to 2"),
        ({"client": "client_0", "stage": 1, "round": 1}, "stage and round each choose a checkpoint; give one of them"),
    ],
)
def test_what_a_run_does_not_have(run, options, sentence):
    with pytest.raises(InputError, match=sentence):
        selected(run, **options)


def test_what_is_no_run_has_no_checkpoints(run):
    with pytest.raises(InputError, match="bundled is a model, which belongs to no round; leave round out, or name a run"):
        select("bundled", SelectionOptions(round=1))
    with pytest.raises(InputError, match="bundled is a model itself; leave model out"):
        select("bundled", SelectionOptions(model="bundled"))
    with pytest.raises(InputError, match="client chooses an adapter of the run, and adapter names another"):
        select(str(run), SelectionOptions(client="client_0"), adapter="elsewhere")

"""What a run compiles: once in a process, and ahead while an earlier stage trains; results stay the same."""

import dataclasses

import jax
import pytest

from devft_jax.config.methods import algorithm_of
from devft_jax.developmental import Growth, LayerMap
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.reporting import Progress
from devft_jax.runtime.compiled import CompiledPrograms
from devft_jax.storage.records import CompiledAheadRecord
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from devft_jax.training.trainer import Trainer
from tests.tiny_run import write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer)
    return dataclasses.replace(written, rounds=3, clients_per_step=2, compile_ahead="on")


def run_of(config, folder, **changes):
    return train(dataclasses.replace(config, out=str(folder), **changes), progress=QUIET)


def adapter_bytes(run):
    return (run.folder / "adapter" / "adapter_model.safetensors").read_bytes()


KINDS = {
    "fedit": {},
    # The state of a stage depends on its frozen weights, which are packed again.
    "federa": {"algorithm": "federa", "quantization": "int8", "fused_precision": "packed"},
    "flora": {"algorithm": "flora", "quantization": "nf4", "client_ranks": (2, 4), "growth": "progfed", "rounds": 8},
    # Hidden states of the layers below are stored.
    "stored": {"growth": "top-grow", "prefix_cache": "on"},
    # Clients keep rows and are judged one by one, or by what stands for all of them.
    "local-only": {"algorithm": "local-only"},
    "dofit": {"algorithm": "dofit", "growth": "top-grow", "prefix_cache": "off"},
    "central": {"algorithm": "central", "clients_per_step": "auto"},
}


class ChunkCalledError(Exception):
    """The chunk was about to run, with these arguments."""


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_a_stage_is_told_ahead_as_it_will_be(config, changes, monkeypatch):
    told = {}

    def prepare(self, name, function, *arguments):
        told[name] = function, arguments

    def call(self, name, function, *arguments):
        if name == "chunk":
            raise ChunkCalledError(function, arguments)
        return function(*arguments)

    monkeypatch.setattr(CompiledPrograms, "prepare", prepare)
    monkeypatch.setattr(CompiledPrograms, "call", call)
    trainer = Trainer(build_parts(dataclasses.replace(config, test_data=None, **changes), progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    with pytest.raises(ChunkCalledError) as called:
        trainer.round(state)
    function, arguments = called.value.args
    told_function, shapes = told["chunk"]
    assert told_function is function
    assert jax.tree.structure(shapes) == jax.tree.structure(arguments)
    for shape, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves(arguments), strict=True):
        assert (shape.shape, shape.dtype, shape.weak_type) == (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False))
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)


@pytest.mark.parametrize(
    "changes", [pytest.param(changes, id=name, marks=pytest.mark.slow) for name, changes in KINDS.items()]
)
def test_what_is_compiled_ahead_is_what_is_called_and_changes_nothing(config, tmp_path, changes):
    jax.clear_caches()
    without = run_of(config, tmp_path / "without", compile_ahead="off", **changes)
    jax.clear_caches()
    ahead = run_of(config, tmp_path / "ahead", **changes)
    assert without.summary.compiled_ahead == CompiledAheadRecord(programs=0, seconds=0, unused=0)
    assert ahead.summary.compiled_ahead.unused == 0
    assert ahead.summary.programs_compiled == without.summary.programs_compiled > 0
    for name in ("final_loss", "accuracy", "personal", "bytes_up", "bytes_down"):
        assert getattr(ahead.summary, name) == getattr(without.summary, name), name
    if without.adapter is not None:
        assert adapter_bytes(ahead) == adapter_bytes(without)


def test_no_stage_is_compiled_ahead_whose_shape_is_not_known(config, tmp_path):
    class Undecided(Growth):
        def next(self, stage, tree, history, key):
            return LayerMap.top(4, 2) if stage == 0 else LayerMap.identity(4) if stage == 1 else None

    chosen = dataclasses.replace(config, out=str(tmp_path), stage_rounds=(1, 1), test_data=None)
    run = train(chosen, growth=Undecided(), progress=QUIET)
    assert run.summary.compiled_ahead.programs == 0


@pytest.mark.slow
def test_an_equal_run_of_the_same_process_compiles_nothing(config, tmp_path):
    first = run_of(config, tmp_path / "first", weight_decay=0.125)
    assert first.summary.programs_compiled > 0
    again = run_of(config, tmp_path / "again", weight_decay=0.125)
    seeded = run_of(config, tmp_path / "seeded", weight_decay=0.125, seed=1)
    for run in (again, seeded):
        assert run.summary.programs_compiled == run.summary.compiled_ahead.programs == 0
    assert adapter_bytes(again) == adapter_bytes(first) != adapter_bytes(seeded)
    other = run_of(config, tmp_path / "other", weight_decay=0.25)
    assert other.summary.programs_compiled > 0
    assert adapter_bytes(other) != adapter_bytes(first)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_equal_options_make_one_algorithm_and_others_another(config, name):
    one = algorithm_of(dataclasses.replace(config, algorithm=name))
    assert algorithm_of(dataclasses.replace(config, algorithm=name, seed=5, out="elsewhere", data="other")) is one
    assert algorithm_of(dataclasses.replace(config, algorithm=name, alpha=5.0)) != one
    assert hash(one) != hash(algorithm_of(dataclasses.replace(config, algorithm=name, rank=3)))


def test_a_stages_programs_are_freed_when_the_next_one_has_other_shapes(config):
    trainer = Trainer(build_parts(dataclasses.replace(config, compile_ahead="off"), progress=QUIET))
    state, history = trainer.begin(), []
    kept = []
    while trainer.advance(state, history):
        trainer.step(state, history)
        kept.append(sum(name == "chunk" for name, *_ in trainer.parts.programs._programs))
    assert kept == [1, 1, 1]
    assert [row.layers for row in history] == [1, 2, 4]

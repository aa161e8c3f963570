"""The untuned base is evaluated by the program of the full model, with the result of the base alone."""

import dataclasses

import pytest

from devft_jax.reporting import Progress
from devft_jax.training.parts import build_parts
from devft_jax.training.trainer import Trainer
from tests.tiny_run import write_run_inputs


@pytest.mark.parametrize(("algorithm", "programs"), [("fedit", 1), ("c2a", 2), ("local-only", 2)])
def test_the_untuned_base_needs_no_program_of_its_own(tmp_path, word_tokenizer, algorithm, programs):
    written = write_run_inputs(tmp_path, word_tokenizer)
    config = dataclasses.replace(written, algorithm=algorithm, growth="end-to-end", rounds=1, devices=1)
    parts = build_parts(config, progress=Progress(quiet=True))
    trainer = Trainer(parts)
    state = trainer.begin()
    alone = parts.evaluator.evaluate(parts.base, None, state.totals.seconds)
    assert state.totals.base_loss == alone.loss
    parts.programs.drop("evaluate")
    compiled = []
    call = parts.programs.call
    parts.programs.call = lambda name, *given: compiled.append((name, str(given[2:3]))) or call(name, *given)
    trainer.begin()
    trainer.begin_stage(state, [])
    assert len({adapter == "(None,)" for name, adapter in compiled if name == "evaluate"}) == programs

"""Every broadcast is said out loud: `jax_numpy_rank_promotion=raise` is in force in runs, exports and answers."""

import dataclasses

import jax
import pytest

from devft_jax.exporting.export import export
from devft_jax.inference.options import ModelOptions
from devft_jax.inference.prompts import to_record
from devft_jax.inference.respondent import open_respondent
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.training.run import train
from tests.tiny_run import write_run_inputs


@pytest.mark.parametrize("algorithm", ["fedit", "fedex-lora", "c2a"])
def test_a_run_its_export_and_its_answers_need_no_silent_broadcast(tmp_path, word_tokenizer, algorithm):
    config = dataclasses.replace(
        write_run_inputs(tmp_path, word_tokenizer), algorithm=algorithm, out=str(tmp_path / "run"), rounds=3, local_steps=1
    )
    with jax.numpy_rank_promotion("raise"):
        with pytest.raises(ValueError, match="rank_promotion"):
            jax.numpy.ones((2, 3)) + jax.numpy.ones(3)
        train(config)
        if algorithm == "c2a":
            return
        export(tmp_path / "run", tmp_path / "merged", form="merged")
        respondent = open_respondent(str(tmp_path / "run"), ModelOptions())
        for temperature in (0.0, 0.7):
            options = GenerationOptions(max_new_tokens=3, temperature=temperature, top_p=0.9 if temperature else 1.0)
            [answer] = respondent.answer([to_record("a b", "here")], options)
    assert answer.tokens

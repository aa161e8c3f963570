"""Greedy answers equal those of transformers' `generate`, token by token."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")

import torch
from transformers import AutoModelForCausalLM

from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.end_tokens import end_token_ids
from devft_jax.models.huggingface.reading import load_pretrained
from tests.parity.test_transformers import ARCHITECTURES, random_model

pytestmark = pytest.mark.parity

OPTIONS = GenerationOptions(max_new_tokens=24, tokens_per_look=7)


def answers_of_transformers(model: torch.nn.Module, prompt: list[int], eos_ids: tuple[int, ...]) -> tuple[int, ...]:
    """One prompt at a time, so that transformers' own padding plays no part; the end token is left out."""
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        said = model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            do_sample=False,
            max_new_tokens=OPTIONS.max_new_tokens,
            eos_token_id=list(eos_ids) or None,
            pad_token_id=0,
        )[0, len(prompt) :].tolist()
    return tuple(said[:-1] if said[-1] in eos_ids else said)


def assert_same_answers(model: torch.nn.Module, folder, prompts: list[list[int]], eos_ids: tuple[int, ...]) -> None:
    loaded = load_pretrained(folder, dtype="float32")
    found = generate(loaded.config, loaded.base, None, prompts, options=OPTIONS, eos_ids=eos_ids)
    expected = [answers_of_transformers(model.float().eval(), prompt, eos_ids) for prompt in prompts]
    assert [answer.tokens for answer in found] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("name", ["llama 3", "llama with biases", "mistral", "qwen2", "qwen2 with a window", "qwen3"])
@pytest.mark.parametrize("eos_ids", [(), (2, 11, 40)], ids=["endless", "ends"])
def test_families(tmp_path, name, eos_ids):
    """Prompts shorter and longer than the window of 8."""
    model = random_model(**ARCHITECTURES[name])
    model.generation_config.eos_token_id = None
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 101, length).tolist() for length in (5, 1, 30, 8)]
    assert_same_answers(model, tmp_path, prompts, eos_ids)


def test_a_really_pretrained_model(shared):
    folder = shared / "models" / "proxy-16l"
    model = AutoModelForCausalLM.from_pretrained(folder)
    loaded = load_pretrained(folder, dtype="float32")
    texts = [
        "Once upon a time there was a little",
        "The",
        "What is the capital of France?\nAnswer:",
        "One day the king said to his three sons",
    ]
    prompts = [[1, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    eos_ids = end_token_ids(folder, loaded.tokenizer)
    assert eos_ids == (2,)
    assert_same_answers(model, folder, prompts, eos_ids)

"""The harness's settings of generation."""

import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.harness.texts import TextRequest, fitted, text_options


def options(**settings):
    return text_options(settings, batch=4)


def test_greedy_unless_sampling_is_asked_for():
    assert options(until=["a", "", "a"], max_gen_toks=7).stop == ("a",)
    assert options(until="b").stop == ("b",)
    assert options().max_new_tokens == 256
    assert options(max_new_tokens=9, max_tokens=3).max_new_tokens == 9
    assert options(do_sample=False, temperature=0.7).temperature == 0
    assert options(temperature=0.7).temperature == 0.7
    assert options(do_sample=True).temperature == 1.0
    assert options(do_sample=True, temperature=0.5, top_p=0.9).top_p == 0.9
    assert options(do_sample=False, top_k=50).temperature == 0


def test_a_setting_that_is_not_supported_is_named():
    with pytest.raises(InputError, match=r"ask for num_beams: 4, which is not supported"):
        options(num_beams=4)
    with pytest.raises(InputError, match=r"ask for top_k: 50"):
        options(do_sample=True, top_k=50)


def test_prompts_are_cut_on_the_left_to_leave_room():
    tokens, same = fitted(range(100), options(max_gen_toks=20), 64)
    assert tokens.tolist() == list(range(56, 100))
    assert same.max_new_tokens == 20
    tokens, shorter = fitted(range(100), options(max_gen_toks=1280), 64)
    assert shorter.max_new_tokens == 32
    assert tokens.tolist() == list(range(68, 100))


def test_random_draws_follow_the_content_and_not_the_place():
    request = TextRequest(np.array([1, 2], np.int32), options())
    assert request.row == TextRequest(np.array([1, 2], np.int32), options()).row
    assert request.row != TextRequest(np.array([1, 2], np.int32), options(), repeat=1).row

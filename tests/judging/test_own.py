"""A user-defined judge: one function, by its import path."""

import sys
import types

import pytest

from devft_jax.errors import InputError, RunError
from devft_jax.judging import Case, Question
from devft_jax.judging.own import own_judge

CASE = Case("single", Question(7, "writing", ("Hi",)), 1, (("Hello there",),))


@pytest.fixture
def module(monkeypatch):
    found = types.ModuleType("judge_of_a_test")
    found.number = lambda case: len(case.answers[0][0].split())
    found.text = lambda case: f"It says {case.answers[0][0]!r}. [[8]]"
    found.nothing = lambda case: None
    found.fails = lambda case: 1 / 0
    found.constant = 3
    found.two = lambda case, other: 5
    monkeypatch.setitem(sys.modules, found.__name__, found)
    return found


def test_it_gives_text_with_a_verdict_or_a_number(module):
    assert own_judge("judge_of_a_test:number")(CASE).text == "[[2]]"
    assert own_judge("judge_of_a_test:text")(CASE).text == "It says 'Hello there'. [[8]]"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("number", "judge 'number' is no name that imports; write package.module:name, or name an endpoint"),
        ("judge_of_a_test:numbr", "did you mean 'number'"),
        ("no_such_module_here:x", "names the module no_such_module_here, which is neither installed nor in"),
        (
            "judge_of_a_test:two",
            "cannot be called with a Case alone (missing a required argument: 'other'); let it take one",
        ),
        ("judge_of_a_test:constant", "judge 'judge_of_a_test:constant' is no function (int); name a function of a Case."),
    ],
)
def test_a_name_that_is_no_judge(module, name, sentence):
    with pytest.raises(InputError) as caught:
        own_judge(name)
    assert sentence in str(caught.value)


def test_what_it_does_wrong_is_said_with_the_question(module):
    with pytest.raises(RunError, match=r"gives a NoneType for question 7; let it return text with a verdict"):
        own_judge("judge_of_a_test:nothing")(CASE)
    with pytest.raises(
        RunError, match=r"ended by ZeroDivisionError \(division by zero\) at .*test_own.py:\d+ at question 7"
    ):
        own_judge("judge_of_a_test:fails")(CASE)

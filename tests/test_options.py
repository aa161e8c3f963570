"""Options as flags: every field has a text, told in one line, and a file's values are the flags' defaults."""

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.commands.flags import flags_of
from devft_jax.commands.generate import PromptOptions
from devft_jax.commands.run import parse_run
from devft_jax.config.run_config import OPTION_GROUPS, RunConfig
from devft_jax.errors import InputError
from devft_jax.federated.options import OptimizerOptions
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.options import check_option, check_options, execution, identity_fields, option_group, option_texts, own_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A group."""

    size: int = 3
    """How large,
    in metres."""
    speed: float = execution(1.0)
    """How fast."""


@pytest.mark.parametrize(
    "group",
    [*OPTION_GROUPS, PromptOptions, ModelOptions, SelectionOptions, GenerationOptions],
    ids=lambda group: group.__name__,
)
def test_every_option_has_a_text(group):
    assert set(option_texts(group)) == {field.name for field in own_fields(group)}
    assert all(text.endswith(".") and "\n" not in text for text in option_texts(group).values())


def test_texts_are_one_line_and_defaults_are_the_starts():
    assert option_texts(Example) == {"size": "How large, in metres.", "speed": "How fast."}
    assert {flag.name: flag.default for flag in flags_of(Example, Example(size=5))} == {"size": 5, "speed": 1.0}
    assert identity_fields(Example()) == {"size": 3}


def declared(*keys):
    """The options of a run and of a generation that declare one of these, with their fields."""
    groups = [*OPTION_GROUPS, GenerationOptions]
    fields = [field for group in groups for field in own_fields(group) if field.metadata.keys() & set(keys)]
    return pytest.mark.parametrize("field", fields, ids=lambda field: field.name)


def just_outside(metadata):
    """Numbers that a declaration does not allow."""
    if "within" in metadata:
        lowest, highest = re.fullmatch(r"[\[(](.+), (.+)[\])]", metadata["within"]).groups()
        yield -1.0
        yield 2.0**33 if "^" in highest else float(highest) + 1
        if metadata["within"][0] == "(":
            yield float(lowest)
        if metadata["within"][-1] == ")" and "^" not in highest:
            yield float(highest)
    if "at_least" in metadata:
        yield metadata["at_least"] - 1
    if "above" in metadata:
        yield metadata["above"]
    if "at_most" in metadata:
        yield metadata["at_most"] + 1
    yield 2**54


@declared("within", "at_least", "above", "at_most")
def test_a_number_out_of_bounds_is_one_sentence_with_its_option_its_value_and_the_remedy(field):
    for number in just_outside(field.metadata):
        if field.metadata.get("above") is not None and number == 2**54 and "at_most" not in field.metadata:
            number = math.inf
        values = (number, (number,), (7, number)) if isinstance(field.default, tuple) else (number,)
        for value in values:
            with pytest.raises(InputError) as caught:
                check_option(field, value)
            sentence = str(caught.value)
            shown = ",".join(map(str, value if isinstance(value, tuple) else (value,)))
            assert sentence.startswith(f"{field.name} {shown} ")
            assert re.fullmatch(r".*; \S.*\.", sentence)
            remedy = field.metadata.get("remedy")
            assert remedy is None or "too large" in sentence or "finite" in sentence or remedy in sentence


@declared("choices")
def test_a_name_that_does_not_exist_is_one_sentence_with_those_that_do(field):
    with pytest.raises(InputError) as caught:
        check_option(field, "zzzzz\x1b")
    names = ", ".join(field.metadata["choices"])
    assert str(caught.value) == f"{field.name} 'zzzzz\\x1b' is unknown; choose from {names}."
    for name in field.metadata["choices"]:
        check_option(field, name)
        assert getattr(RunConfig(**{field.name: name.upper()}), field.name) == name


@pytest.mark.parametrize("group", [*OPTION_GROUPS, GenerationOptions], ids=lambda group: group.__name__)
def test_every_default_is_allowed(group):
    check_options(group(**{field.name: field.default for field in dataclasses.fields(group)}))


ENDS = st.integers(-3, 3)


@given(ENDS, st.integers(1, 4), st.sampled_from("[("), st.sampled_from("])"), st.floats(-9, 9) | ENDS)
def test_an_interval_holds_what_lies_in_it(lowest, width, left, right, number):
    highest = lowest + width
    field = dataclasses.field(metadata={"within": f"{left}{lowest}, {highest}{right}"})
    field.name = "x"
    inside = lowest < number < highest or (left == "[" and number == lowest) or (right == "]" and number == highest)
    if inside:
        check_option(field, number)
    else:
        with pytest.raises(InputError, match=f"^x {re.escape(str(number))} is outside "):
            check_option(field, number)


def test_lists_that_must_hold_something_and_values_that_are_no_numbers():
    fields = RunConfig.__dataclass_fields__
    with pytest.raises(InputError, match=r"^learning_rate is empty; give one value or more, each 0 or more\.$"):
        check_option(fields["learning_rate"], ())
    with pytest.raises(InputError, match=r"^client_ranks 4,0 has 0, which is not positive; give ranks of 1 or above"):
        check_option(fields["client_ranks"], (4, 0))
    for name, value in {"alpha": "auto", "devices": None, "client_ranks": None, "beta": "auto"}.items():
        check_option(fields[name], value)


def test_flags_win_over_a_file_and_leave_its_other_values(tmp_path):
    (tmp_path / "run.yaml").write_text("fields: {instruction: ask, output: say}\nrounds: 7\ncapacities: [2, 4]\n")
    config = parse_run(["--config", str(tmp_path / "run.yaml"), "--rounds", "9"])
    mapping = {"instruction": "ask", "output": "say"}
    assert config == dataclasses.replace(RunConfig(), fields=mapping, rounds=9, capacities=(2, 4))


def test_a_rooms_options_alone_are_equal_where_others_differ():
    runs = [RunConfig(seed=seed, optimizer="sgd", beta1=0.5) for seed in (0, 1)]
    first, second = (option_group(OptimizerOptions, run) for run in runs)
    assert first == second == OptimizerOptions(optimizer="sgd", beta1=0.5)
    assert hash(first) == hash(second)

"""Options as flags: every field has a text, told in one line, and a file's values are the flags' defaults."""

import dataclasses

import pytest

from devft_jax.commands.flags import flags_of
from devft_jax.commands.generate import PromptOptions
from devft_jax.commands.run import parse_run
from devft_jax.config.run_config import ROOMS, RunConfig
from devft_jax.federated.local import OptimizerOptions
from devft_jax.inference.respondent import ModelOptions
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.options import execution, identity_fields, option_texts, own_fields, room_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A room."""

    size: int = 3
    """How large,
    in metres."""
    speed: float = execution(1.0)
    """How fast."""


@pytest.mark.parametrize("room", [*ROOMS, PromptOptions, ModelOptions, GenerationOptions], ids=lambda room: room.__name__)
def test_every_option_has_a_text(room):
    assert set(option_texts(room)) == {field.name for field in own_fields(room)}
    assert all(text.endswith(".") and "\n" not in text for text in option_texts(room).values())


def test_texts_are_one_line_and_defaults_are_the_starts():
    assert option_texts(Example) == {"size": "How large, in metres.", "speed": "How fast."}
    assert {flag.name: flag.default for flag in flags_of(Example, Example(size=5))} == {"size": 5, "speed": 1.0}
    assert identity_fields(Example()) == {"size": 3}


def test_flags_win_over_a_file_and_leave_its_other_values(tmp_path):
    (tmp_path / "run.yaml").write_text("fields: {instruction: ask, output: say}\nrounds: 7\ncapacities: [2, 4]\n")
    config = parse_run(["--config", str(tmp_path / "run.yaml"), "--rounds", "9"])
    mapping = {"instruction": "ask", "output": "say"}
    assert config == dataclasses.replace(RunConfig(), fields=mapping, rounds=9, capacities=(2, 4))


def test_a_rooms_options_alone_are_equal_where_others_differ():
    runs = [RunConfig(seed=seed, optimizer="sgd", beta1=0.5) for seed in (0, 1)]
    first, second = (room_of(OptimizerOptions, run) for run in runs)
    assert first == second == OptimizerOptions(optimizer="sgd", beta1=0.5)
    assert hash(first) == hash(second)

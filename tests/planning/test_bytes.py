"""The bytes of a plan for the models of the DevFT paper: every algorithm and channel, against formulas written by hand.

A formula counts the elements of the factors; a plan traces the messages of the algorithm itself on shapes. By default only
the model in which a and b differ in size is planned; the others are slow.
"""

import dataclasses
import functools
from typing import Any

import pytest

from devft_jax.config.methods import algorithm_of
from devft_jax.config.presets import preset
from devft_jax.federated.algorithms import ALGORITHMS, MethodConfig
from devft_jax.planning.planner import make_plan
from tests.federated.test_invariants import TRAITS, only_a, only_b

RANK, PARTICIPANTS = 32, 2
# The model's width and the outputs of its value projection; depths and rounds of the stages.
MODELS: dict[str, tuple[int, int, tuple[int, ...], int]] = {
    "paper-llama2-7b": (4096, 4096, (4, 8, 16, 32), 75),
    "paper-llama3.1-8b": (4096, 1024, (4, 8, 16, 32), 75),
    "paper-llama2-13b": (5120, 5120, (5, 10, 20, 40), 100),
}
CHANNELS = ("int8", "int4", "topk=0.1", "topk=0.1+int8")
AVERAGING = [name for name in ALGORITHMS if algorithm_of(MethodConfig(algorithm=name)).averages]


def leaves_of(name: str, model: str, layers: int) -> list[int]:
    """Elements of every leaf that a client's message changes: factors of the query and value projections, or C2A's."""
    width, values, _, _ = MODELS[model]
    if name == "c2a":
        # r = 16, c = 32, C = 10 and tokens of 8: Y, c_Y, X, c_X, E, F, S, beta, b1, b2 and the gate.
        return [80, 8, 8 * width, 8, 8 * layers, 8 * 16 * 32, 32 * width, 16 * width, 16, width, 1]
    a, b = [layers * RANK * width] * 2, [layers * RANK * width, layers * RANK * values]
    return {only_a: a, only_b: b}.get(TRAITS[name].up, [*a, *b])


def plain(name: str, model: str, layers: int) -> tuple[int, int]:
    """Bytes down and up of one client's messages without a channel."""
    if name == "central":
        # Its only participant is the server.
        return 0, 0
    if name == "c2a":
        return (4 * sum(leaves_of(name, model, layers)),) * 2
    width, values, _, _ = MODELS[model]
    factors = 2 * layers * RANK * width, layers * RANK * (width + values)
    return TRAITS[name].down(*factors, PARTICIPANTS), TRAITS[name].up(*factors, PARTICIPANTS)


def quantised(leaf: int, bits: int) -> int:
    """Bytes of the codes, and of a float32 scale for every 128 of them."""
    return -(-leaf * bits // 8) + 4 * -(-leaf // 128)


def sent(channel: str, leaves: list[int]) -> int:
    """Bytes of a message through a channel."""
    size = sum(leaves)
    kept = size // 10
    positions = min(4 * kept, -(-size // 8))
    return {
        "int8": sum(quantised(leaf, 8) for leaf in leaves),
        "int4": sum(quantised(leaf, 4) for leaf in leaves),
        "topk=0.1": 4 * kept + positions,
        "topk=0.1+int8": quantised(kept, 8) + positions,
    }[channel]


@pytest.fixture(autouse=True, scope="module")
def without_memory():
    """Plans whose memory, which takes most of the time, and whose table of the paper are left out."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stage_memory", "paper_convention"):
            patch.setattr(f"devft_jax.planning.planner.{name}", lambda *given, **named: None)
        yield


@functools.cache
def plan_of(model: str, name: str, channel: str = "none") -> Any:
    """The plan of the paper's stages by an algorithm; alpha is as by default, which some algorithms do not read."""
    return make_plan(dataclasses.replace(preset(model), algorithm=name, channel=channel, alpha="auto"))


def assert_bytes(plan: Any, model: str, messages: list[tuple[int, int]], more: int = 0) -> None:
    """A plan has these messages (down, up) in its stages, sent to and by every participant of every round.

    A message that differs from round to round is the mean of them; in all, `more` bytes are sent up than by means.
    """
    _, _, depths, rounds = MODELS[model]
    assert [stage.layers for stage in plan.stages] == list(depths)
    assert [(stage.message_down, stage.message_up) for stage in plan.stages] == messages
    participations = rounds * PARTICIPANTS
    assert plan.total("bytes_down") == participations * sum(down for down, _ in messages)
    assert plan.total("bytes_up") == participations * sum(up for _, up in messages) + more


def slow_unless(default: bool, *case: str) -> Any:
    """A case for `parametrize`."""
    return pytest.param(*case, marks=[] if default else [pytest.mark.slow])


UNEQUAL = "paper-llama3.1-8b"


@pytest.mark.parametrize(
    ("model", "name"), [slow_unless(model == UNEQUAL, model, name) for model in MODELS for name in ALGORITHMS]
)
def test_an_algorithms_bytes_are_its_formulas(model, name):
    width, values, depths, rounds = MODELS[model]
    # RoLoRA begins with b, so a stage with an odd number of rounds has one more of b than of a.
    more = 2 * sum(depths) * RANK * (values - width) * PARTICIPANTS if name == "rolora" and rounds % 2 else 0
    assert_bytes(plan_of(model, name), model, [plain(name, model, layers) for layers in depths], more)


# What a channel does depends on the leaves of a message alone, so one algorithm is planned for every model.
SENT = [
    slow_unless(model == UNEQUAL and name == "fedit", model, name, channel)
    for model in MODELS
    for name in AVERAGING
    if model == UNEQUAL or name == "fedit"
    for channel in CHANNELS
]


@pytest.mark.parametrize(("model", "name", "channel"), SENT)
def test_a_channels_bytes_are_its_formulas(model, name, channel):
    depths = MODELS[model][2]
    messages = [(plain(name, model, layers)[0], sent(channel, leaves_of(name, model, layers))) for layers in depths]
    assert_bytes(plan_of(model, name, channel), model, messages)

"""What `--channel` takes and refuses, each in one sentence before anything is compiled."""

import pytest

from devft_jax.comparing.arms import parse_arm
from devft_jax.config.effects import check_effects
from devft_jax.config.methods import algorithm_of, method_of, sent_through
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.errors import InputError
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.federated.channels.named import channel_of
from devft_jax.federated.channels.options import LINKS, ChannelOptions


@pytest.mark.parametrize(
    "name", ["bf16", "int8", "int4", "topk=0.1", "randk=0.5", "lowrank=4", "topk=0.1+int8", "lowrank=2+bf16"]
)
def test_channels_have_the_names_that_they_are_given(name):
    assert channel_of(ChannelOptions(channel=name), "float32").name == name
    assert parse_arm(f"fedit+devft:channel={name}:rank=4").overrides == {"channel": name, "rank": 4}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("int9", "channel 'int9' is unknown; choose from topk, randk, lowrank, bf16, int8, int4 (did you mean 'int8'?)"),
        ("none+int8", "channel 'none' is unknown"),
        ("", "channel '' is unknown"),
        ("topk", "does not give topk a share of the entries in (0, 1]; write one, such as topk=0.1."),
        ("randk=1.5", "does not give randk a share of the entries in (0, 1]; write one, such as randk=0.1."),
        ("topk=nan", "does not give topk a share"),
        ("lowrank=0", "does not give lowrank a rank of 1 or above; write one, such as lowrank=4."),
        ("lowrank=1.5", "does not give lowrank a rank"),
        ("int8=3", "gives int8 a value, which has none; write int8."),
        ("int8+topk=0.1", "order that no message has; write at most one of topk, randk, lowrank, then at most one of bf16"),
        ("int8+int4", "order that no message has"),
    ],
)
def test_what_is_no_channel_is_refused(name, said):
    with pytest.raises(InputError) as refused:
        validate(RunConfig(channel=name))
    assert said in str(refused.value)


def test_a_method_without_a_mean_is_refused_with_the_remedy():
    for name, make in ALGORITHMS.items():
        config = RunConfig(algorithm=name, channel="int8")
        if make(config).averages or name in ("central", "local-only"):
            validate(config)
            continue
        with pytest.raises(InputError) as refused:
            validate(config)
        assert str(refused.value).startswith("channel int8 needs an algorithm whose server takes the mean of the clients'")
        assert f"{name} is none; use --channel none, or one of fedit, fedsa-lora" in str(refused.value)
    assert not any(ALGORITHMS[name](RunConfig()).averages for name in ("flora", "scaffold", "flasc", "fedex-lora"))


def test_options_without_effect_are_refused():
    for options, said in (
        (
            {"algorithm": "central", "channel": "int8"},
            "channel int8 has no effect with the algorithm central, which",
        ),
        ({"error_feedback": False}, "error_feedback False has no effect without a channel; leave it out or use --channel"),
        (
            {"channel": "topk=0.1", "rounding": "nearest"},
            "rounding nearest is read by bf16, int8, int4 only and the channel",
        ),
    ):
        with pytest.raises(InputError) as refused:
            check_effects(RunConfig(**options))
        assert said in str(refused.value)
    check_effects(RunConfig(channel="topk=0.1+int8", rounding="nearest", error_feedback=False))


def test_without_a_channel_the_record_is_the_methods_own():
    """The same functions are the same programs, so rounds are the same bit for bit."""
    for name in ALGORITHMS:
        config = RunConfig(algorithm=name)
        assert algorithm_of(config) is method_of(config)
    central = RunConfig(algorithm="central", channel="int8")
    assert sent_through(central, method_of(central)) is method_of(central)
    one, other = (algorithm_of(RunConfig(channel="int8")) for _ in range(2))
    assert one is other


def test_every_link_says_what_it_sends():
    assert all(LINKS.values())

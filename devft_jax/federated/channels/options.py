"""The options of channels, and the channel that they name.

    --channel int8                  whole numbers of 8 bits
    --channel topk=0.1+int8         a tenth of the entries, these as whole numbers of 8 bits

At most one of the links that send fewer numbers comes first, then at most one of those that send each in fewer bits.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from devft_jax.errors import InputError
from devft_jax.federated.channels import low_rank, quantisation, sparsification
from devft_jax.federated.channels.channel import Channel, chain, with_error_feedback
from devft_jax.files import printable
from devft_jax.options import Need, option, unknown_name

FEWER_NUMBERS = {
    "topk": "the given share of the entries, those of largest magnitude, with their positions: topk=0.1",
    "randk": "a random choice of the given share of the entries; both sides know the positions: randk=0.1",
    "lowrank": "every matrix as the nearest product of two factors of the given rank: lowrank=4",
}
FEWER_BITS = {
    "bf16": "bfloat16, 16 bits per entry",
    "int8": "whole numbers of 8 bits, with a float32 scale for every 128 entries",
    "int4": "whole numbers of 4 bits, with a float32 scale for every 128 entries",
}
LINKS = FEWER_NUMBERS | FEWER_BITS
"""What each link of a channel sends, by name."""
MODULES = {
    **dict.fromkeys(("topk", "randk"), sparsification),
    "lowrank": low_rank,
    **dict.fromkeys(FEWER_BITS, quantisation),
}
"""The module with the mathematics of each link."""
EXAMPLES = {"topk": "0.1", "randk": "0.1", "lowrank": "4"}

ANY = Need(lambda config: config.channel != "none", "has no effect without a channel", "use --channel")
QUANTISED = Need(
    lambda config: config.channel.rpartition("+")[2] in FEWER_BITS,
    lambda config: f"is read by {', '.join(FEWER_BITS)} only and the channel is {config.channel}",
    "add one of them to --channel",
)


@dataclass(frozen=True, kw_only=True)
class ChannelOptions:
    """What happens to the clients' messages on their way to the server."""

    channel: str = "none"
    """How clients send what they have trained: none (in message_dtype), bf16, int8, int4, topk=SHARE, randk=SHARE or
    lowrank=RANK, or one of the last three and one of the first joined by +, such as topk=0.1+int8."""
    error_feedback: bool = option(True, needs=[ANY])
    """Whether a client keeps what a message did not carry and adds it to its next one; anew in each stage."""
    rounding: str = option("stochastic", choices=("stochastic", "nearest"), needs=[QUANTISED])
    """Rounding of bf16, int8 and int4: stochastic (unbiased) or nearest."""


@functools.cache
def channel_of(options: ChannelOptions, message_dtype: str) -> Channel | None:
    """The channel that options name; None for none. Equal options give the same record.

    Args:
      options: the options.
      message_dtype: data type of values that are not quantised.

    Raises:
      InputError: a link is unknown, lacks its value or has a wrong one, or stands in the wrong place.
    """
    if options.channel == "none":
        return None
    words = [word.partition("=") for word in options.channel.split("+")]
    for name, _, _ in words:
        if name not in LINKS:
            raise unknown_name("channel", name, LINKS, "or several joined by +, such as topk=0.1+int8")
    links = [_link(options, name, equals, value, message_dtype) for name, equals, value in words]
    places = [name in FEWER_BITS for name, _, _ in words]
    if places not in ([False], [True], [False, True]):
        raise InputError(
            f"channel '{printable(options.channel)}' has its links in an order that no message has; write at most one of "
            f"{', '.join(FEWER_NUMBERS)}, then at most one of {', '.join(FEWER_BITS)}, such as topk=0.1+int8."
        )
    channel = chain(*links)
    return with_error_feedback(channel) if options.error_feedback else channel


def _link(options: ChannelOptions, name: str, equals: str, value: str, dtype: str) -> Channel:
    """One link of the channel, from its name and the text after =."""
    if name in FEWER_BITS:
        if equals:
            raise InputError(f"channel '{printable(options.channel)}' gives {name} a value, which has none; write {name}.")
        return quantisation.quantised(name, options.rounding)
    kind: Callable[[str], float] = int if name == "lowrank" else float
    try:
        number = kind(value)
    except ValueError:
        number = 0
    if name == "lowrank":
        if number < 1:
            raise _wrong(options, name, "a rank of 1 or above")
        return low_rank.low_rank(int(number), dtype)
    if not 0 < number <= 1:
        raise _wrong(options, name, "a share of the entries in (0, 1]")
    if name == "topk":
        return sparsification.top_k(number, dtype)
    return sparsification.random_k(number, dtype, unbiased=not options.error_feedback)


def _wrong(options: ChannelOptions, name: str, wanted: str) -> InputError:
    return InputError(
        f"channel '{printable(options.channel)}' does not give {name} {wanted}; write one, such as {name}={EXAMPLES[name]}."
    )

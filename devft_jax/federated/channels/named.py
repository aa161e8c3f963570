"""The channel that options name."""

import functools
from collections.abc import Callable

from devft_jax.errors import InputError
from devft_jax.federated.channels import low_rank, quantisation, sparsification
from devft_jax.federated.channels.channel import Channel, chain, with_error_feedback
from devft_jax.federated.channels.options import EXAMPLES, FEWER_BITS, FEWER_NUMBERS, LINKS, ChannelOptions
from devft_jax.files import printable
from devft_jax.options import unknown_name


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

"""The options of channels; `devft_jax.federated.channels.named` makes the channel that they name.

    --channel int8                  whole numbers of 8 bits
    --channel topk=0.1+int8         a tenth of the entries, these as whole numbers of 8 bits

At most one of the links that send fewer numbers comes first, then at most one of those that send each in fewer bits.
"""

from dataclasses import dataclass

from devft_jax.options import Need, option

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
    **dict.fromkeys(("topk", "randk"), "devft_jax.federated.channels.sparsification"),
    "lowrank": "devft_jax.federated.channels.low_rank",
    **dict.fromkeys(FEWER_BITS, "devft_jax.federated.channels.quantisation"),
}
"""The name of the module with the mathematics of each link."""
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

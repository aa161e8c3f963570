"""What can be said of an algorithm before it is made: its source, what is sent and kept, and which options it reads."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Description:
    """The description of an algorithm.

    Attributes:
      name: name on the command line.
      reference: paper and year.
      message: what is sent, for `devft list`.
      state: what the server and the clients keep besides the adapter, for `devft list`.
      averages: whether an uplink message holds only changes of trained leaves, as floats, the server's state depends on the
        messages only through their weighted mean, and a leaf means the same in every round of a stage, so that what one
        message left out can be added to a later one. A channel can then change what is sent.
      by_layer: whether the server takes the mean of clients' changes of the factors layer by layer, as FedIT does, from
        contributions that are `WeightedSum` of (changes of factors, other quantities [layers, ...]), and clients keep
        nothing between rounds. Clients may then hold different layers.
      reads: the options of single methods (those declared with `of="algorithm"`) that this one reads. Of the other options,
        it reads all except those in `ignores`. An option that is given but not read is refused.
      ignores: options of all methods that have no effect on this one.
      because: the reason, written to follow "which" in a sentence.
    """

    name: str
    reference: str
    message: str
    state: str
    averages: bool = False
    by_layer: bool = False
    reads: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    because: str = ""

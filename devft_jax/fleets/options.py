"""The options of a simulated fleet and of its rounds."""

from dataclasses import dataclass

from devft_jax.options import Need, option

FLEET = Need(lambda config: config.fleet is not None, "has no effect without a fleet", "give --fleet, such as mixed")
SYNCHRONOUS = {"aggregation": ("synchronous",)}
BUFFERED = {"aggregation": ("buffered",)}
"""The conditions under which the options of one kind of aggregation are read."""
DEADLINE = Need(lambda config: config.deadline is not None, "has no effect without a deadline", "give --deadline in seconds")


@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """The clients' devices, and when the server closes a round."""

    fleet: str | None = option(None, path=True)
    """The clients' devices, in simulated time: phone, laptop, single-board, workstation, mixed, shares such as
    phone=0.7,laptop=0.3, or a file (CSV, JSON, JSON lines, or FedScale's client_device_capacity). By default every client
    can take part in every round."""
    fleet_availability: str | None = option(None, path=True, needs=[FLEET])
    """File that says when devices are present, in the layout of FedScale's client_behave_trace (a pickle of plain values, or
    JSON); by default the fleet's own hours."""
    trace_flops: float = option(6e8, above=0, remedy="6e8 suits MobileNetV2", needs=[FLEET])
    """Operations of the forward pass that FedScale's device file times, in milliseconds per example, from which the rate of
    a device follows; the default is MobileNetV2's."""
    aggregation: str = option("synchronous", choices=("synchronous", "buffered"), needs=[FLEET])
    """When the server takes a step: synchronous (it closes a round and begins another) or buffered (whenever
    clients_per_round changes have arrived, while others are at work from earlier states: FedBuff, Nguyen et al., 2022)."""
    concurrency: int | None = option(None, at_least=1, at_most=10**6, when=BUFFERED)
    """Clients at work at any time, by default twice clients_per_round."""
    staleness_power: float = option(0.5, at_least=0, when=BUFFERED)
    """A change that began t steps of the server ago counts (1 + t)^-power as much."""
    deadline: float | None = option(None, above=0, remedy="600 is ten minutes", when=SYNCHRONOUS, needs=[FLEET])
    """Simulated seconds after which the server closes a round; clients that are not done are left out. By default it waits
    for all."""
    over_selection: float = option(1.0, at_least=1, at_most=1000, when=SYNCHRONOUS, needs=[FLEET])
    """Clients that are asked to take part, as a multiple of clients_per_round; the round closes when clients_per_round have
    finished (1.3 in Bonawitz et al., 2019)."""
    late_work: str = option("drop", choices=("drop", "partial"), when=SYNCHRONOUS, needs=[FLEET, DEADLINE])
    """What a client does that cannot finish before the deadline: drop (its work is lost) or partial (it takes as many local
    steps as fit)."""

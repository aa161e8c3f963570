"""The records of a run on a simulated fleet, within the records of rounds, stages and runs."""

from dataclasses import dataclass, field

from devft_jax.storage.record import OMITTED, Record


@dataclass(kw_only=True)
class SimulatedRoundRecord(Record):
    """A round in simulated time; clients are indices in the split, those of abandoned attempts included.

    Attributes:
      seconds: simulated seconds of the round, waiting and abandoned attempts included.
      clock: simulated seconds since the beginning of the run, at the end of the round.
      waited: seconds of the round in which too few clients were present.
      eligible: number of clients whose memory suffices for the stage.
      present: number of these that were present.
      abandoned: attempts that nobody finished.
      selected: clients that received the server's message.
      failed: clients that failed.
      left: clients that left before they were done.
      late: clients that were not done at the deadline.
      surplus: clients that were still at work when enough had finished.
      client_seconds: of each participant of the round's line, until its message arrived.
      steps: local steps of each participant; None if all took all.
      staleness: of each participant, the server's steps since it began; None for synchronous rounds.
    """

    where = "the simulated round of a line of metrics.jsonl"

    seconds: float
    clock: float
    waited: float
    eligible: int
    present: int
    abandoned: int
    selected: list[int]
    failed: list[int]
    left: list[int]
    late: list[int]
    surplus: list[int]
    client_seconds: list[float]
    steps: list[int] | None = None
    staleness: list[int] | None = field(default=None, metadata=OMITTED)

    @property
    def lost(self) -> int:
        """Number of selected clients whose work was not used."""
        return len(self.failed) + len(self.left) + len(self.late) + len(self.surplus)


@dataclass(kw_only=True)
class SimulatedStageRecord(Record):
    """A stage on a fleet.

    Attributes:
      memory_bytes: memory that a client needs.
      eligible: number of clients whose memory suffices, by tier.
      seconds: simulated seconds of its rounds so far.
      selected: participations that were begun.
      failed: of these, the clients failed.
      left: of these, the clients left.
      late: of these, the clients were not done at the deadline.
      surplus: of these, enough others had finished.
    """

    where = "the fleet of a stage of its record"

    memory_bytes: int
    eligible: dict[str, int]
    seconds: float = 0.0
    selected: int = 0
    failed: int = 0
    left: int = 0
    late: int = 0
    surplus: int = 0

    def add(self, row: SimulatedRoundRecord) -> None:
        """Add a round.

        Args:
          row: the round.
        """
        self.seconds += row.seconds
        for name in ("selected", "failed", "left", "late", "surplus"):
            setattr(self, name, getattr(self, name) + len(getattr(row, name)))


@dataclass(kw_only=True)
class FlightRecord(Record):
    """A client at work; see `devft_jax.fleets.buffered.Flight`.

    Attributes:
      client: its index.
      version: the server's steps when it began.
      began: seconds since the beginning of the run.
      ends: seconds since the beginning of the run.
      fate: "finished", "failed" or "left".
    """

    where = "a client at work in the record of its checkpoint"

    client: int
    version: int
    began: float
    ends: float
    fate: str


@dataclass(kw_only=True)
class FleetRecord(Record):
    """The fleet of a run.

    Attributes:
      tiers: number of clients by tier.
      seconds: simulated seconds of all rounds so far.
      flights: the clients at work, if the server has a buffer.
      begun: number of clients that have begun, if the server has a buffer.
    """

    where = "the fleet of its record"

    tiers: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    flights: list[FlightRecord] | None = field(default=None, metadata=OMITTED)
    begun: int | None = field(default=None, metadata=OMITTED)

"""The record of how the data is split over the clients, split.json."""

from dataclasses import dataclass, field

from devft_jax.storage.record import Record


@dataclass(kw_only=True)
class ClientRecord(Record):
    """A client of the split.

    Attributes:
      name: name of the client.
      id: its number, from which its random numbers are derived.
      examples: number of its examples.
      tokens: number of tokens in its examples.
      groups: number of examples by the name of their group.
    """

    where = "a client of its split"

    name: str
    id: int
    examples: int
    tokens: int
    groups: dict[str, int]


@dataclass(kw_only=True)
class SplitRecord(Record):
    """The training data and its split over clients.

    Attributes:
      partition: how the data was split.
      template: how prompts are worded.
      begins_with: texts of the tokens before every example.
      ends_with: texts of the tokens after every answer.
      notes: further facts about the prompts.
      examples: number of examples of all clients.
      tokens: number of tokens of all examples.
      grouped_by: category, topic or length; None if examples have no groups.
      groups: number of examples by the name of their group, over all clients.
      clients: in order.
    """

    where = "its split"

    partition: str
    template: str
    begins_with: list[str] = field(default_factory=list)
    ends_with: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    examples: int
    tokens: int
    grouped_by: str | None
    groups: dict[str, int]
    clients: list[ClientRecord]

"""The record of a class of clients, within the record of a stage."""

from dataclasses import dataclass, field

from devft_jax.storage.record import OMITTED, Record


@dataclass(kw_only=True)
class ClassRecord(Record):
    """What the clients of a class hold in a stage.

    Attributes:
      layers: layers with an adapter.
      trained: number of these that train.
      bare: layers that run below them without an adapter.
      ranks: rank of each, if it is not the run's for all.
      clients: number of clients in the class, whether they take part or not.
      memory_bytes: memory that a client needs.
      message_up: bytes of a client's message.
      message_down: bytes of the message to a client.
    """

    where = "a class of clients in a stage of its record"

    layers: int
    trained: int
    bare: int
    ranks: list[int] | None = field(default=None, metadata=OMITTED)
    clients: int
    memory_bytes: int
    message_up: int
    message_down: int

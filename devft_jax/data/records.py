"""Records in one form, each with its origin: an instruction with its answer, or a conversation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
      role: system, user or assistant.
      content: the text.
    """

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One instruction with its answer, or a conversation.

    Code that reads only `instruction`, `input` and `output` sees the last exchange of a conversation; code that reads
    `turns` sees an instruction as a conversation of two turns.

    Attributes:
      instruction: the instruction or question.
      input: context of the instruction; empty if there is none.
      output: the answer.
      category: kind of task, if the data has it; non-IID splits are made from it.
      origin: where the record was read, as `path:number`: a line of JSONL or CSV, a record in other formats.
      conversation: all turns of a record that was given as turns; empty for other records.
    """

    instruction: str
    input: str
    output: str
    category: str | None
    origin: str
    conversation: tuple[Turn, ...] = ()

    @classmethod
    def of_turns(cls, turns: Sequence[Turn], category: str | None, origin: str) -> "Record":
        """Make a record from a conversation.

        Args:
          turns: in order; at least one must be the assistant's.
          category: its kind of task, if known.
          origin: where it was read.
        """
        last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
        asked = next((turn.content for turn in reversed(turns[:last]) if turn.role == "user"), "")
        return cls(asked, "", turns[last].content, category, origin, tuple(turns))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The record as a conversation; the input follows its instruction on a line of its own."""
        if self.conversation:
            return self.conversation
        asked = f"{self.instruction}\n{self.input}" if self.input else self.instruction
        return Turn("user", asked), Turn("assistant", self.output)

    @property
    def text(self) -> str:
        """All text of the record, without a template's wording."""
        return "\n".join(turn.content for turn in self.turns)


@dataclass(frozen=True, eq=False)
class Source:
    """The records of one file (or of one split of a named data set), read again in every iteration.

    Attributes:
      name: file name without folder and suffix, or the path below the folder from which a glob starts.
      place: path or name from which it is read.
      size: number of records.
      read: starts a pass over the records.
      conversational: whether its records are conversations.
    """

    name: str
    place: str
    size: int
    read: Callable[[], Iterator[Record]]
    conversational: bool = False

    def __len__(self) -> int:
        """Number of records."""
        return self.size

    def __iter__(self) -> Iterator[Record]:
        """A pass over the records; raises `InputError` at the first invalid one."""
        return self.read()


class Records:
    """The records of several sources, one after another, never all in memory.

    Attributes:
      sources: the sources.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = tuple(sources)

    def __len__(self) -> int:
        """Number of records in all sources."""
        return sum(map(len, self.sources))

    def __iter__(self) -> Iterator[Record]:
        """A pass over the records of all sources."""
        return chain.from_iterable(self.sources)

    def at(self, index: "np.ndarray") -> Iterator[Record]:
        """The records with some numbers, in one pass.

        With the `record_index` of `Examples` it yields the record of every example, in their order.

        Args:
          index: i64[M], ascending; numbers may repeat.
        """
        wanted = map(int, index)
        position = next(wanted, None)
        for number, record in enumerate(self):
            while number == position:
                yield record
                position = next(wanted, None)
            if position is None:
                return

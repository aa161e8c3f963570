"""Tokenised examples: all of them end to end in one array, with a flag a token beside it."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Examples:
    """N tokenised examples of T_n tokens each, in one array that other examples may share.

    Attributes:
      tokens: i32[at least sum of T_n].
      is_answer: bool, like `tokens`: whether the assistant says the token, so that the loss covers it.
      starts: i64[N]; example n is `tokens[starts[n]:starts[n] + lengths[n]]`.
      lengths: i64[N], tokens of each example.
      prompt_lengths: i32[N], tokens before the first of an answer, those that lead the example included.
      record_index: i64[N], ascending, which of the tokenised records each example came from; several of one follow each
        other.
      answers: i32[N], with how many of its record's answers the example ends; 0 for all of the record.
      category_codes: i32[N], index into `category_names`; -1 for a record without category.
      category_names: the categories of all records, sorted, also those of records that were dropped.
      truncated: bool[N], whether the example was cut at the length limit.
    """

    tokens: np.ndarray
    is_answer: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    prompt_lengths: np.ndarray
    record_index: np.ndarray
    answers: np.ndarray
    category_codes: np.ndarray
    category_names: tuple[str, ...]
    truncated: np.ndarray

    def __len__(self) -> int:
        """N."""
        return len(self.lengths)

    def row(self, n: int) -> np.ndarray:
        """i32[T_n], the tokens of one example.

        Args:
          n: number of the example.
        """
        return self.tokens[self.starts[n] : self.starts[n] + self.lengths[n]]

    def take(self, index: np.ndarray) -> "Examples":
        """The examples at `index` i64[M], in that order; they share the tokens with these.

        Args:
          index: i64[M], numbers of examples.
        """
        return replace(
            self,
            starts=self.starts[index],
            lengths=self.lengths[index],
            prompt_lengths=self.prompt_lengths[index],
            record_index=self.record_index[index],
            answers=self.answers[index],
            category_codes=self.category_codes[index],
            truncated=self.truncated[index],
        )

    @property
    def owners(self) -> np.ndarray:
        """i64[N], ascending, the number of each example's record among those that have examples."""
        return np.cumsum(np.diff(self.record_index, prepend=self.record_index[:1]) != 0)

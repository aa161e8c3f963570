"""Tokenised examples, concatenated in one array, with one flag per token in another."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class Examples:
    """N tokenised examples of T_n tokens each, in an array that other examples may share.

    Attributes:
      tokens: i32[M], M at least the sum of T_n.
      is_answer: bool[M]: whether the token belongs to an answer, so that the loss covers it.
      starts: i64[N]; example n is `tokens[starts[n]:starts[n] + lengths[n]]`.
      lengths: i64[N], tokens of each example.
      prompt_lengths: i32[N], tokens before the first answer token, including leading tokens.
      record_index: i64[N], ascending, the number of the record from which each example was made; examples of one record are
        next to each other.
      answers: i32[N], the number of its record's answers after which the example ends; 0 for the whole record.
      category_codes: i32[N], index into `category_names`; -1 for a record without a category.
      category_names: the categories of all records, sorted, including those of dropped records.
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

    @classmethod
    def of_rows(
        cls, rows: np.ndarray, *, lengths: np.ndarray | None = None, prompt_lengths: np.ndarray | None = None
    ) -> "Examples":
        """Examples of one prompt and one answer each, from token ids that are at hand.

        Args:
          rows: i32[N, T], the token ids of each example, padded on the right.
          lengths: i64[N], the tokens of each example; by default T.
          prompt_lengths: i32[N], the tokens before each answer; by default 1: all tokens after the first are learned.

        Raises:
          ValueError: a length does not fit its row.
        """
        count, longest = rows.shape
        lengths = np.full(count, longest, np.int64) if lengths is None else np.asarray(lengths, np.int64)
        prompts = np.ones(count, np.int32) if prompt_lengths is None else np.asarray(prompt_lengths, np.int32)
        for name, each, least, most in (("lengths", lengths, 1, longest), ("prompt_lengths", prompts, 0, lengths)):
            if each.shape != (count,) or (each < least).any() or (each > most).any():
                raise ValueError(f"{name} do not fit: give each of the {count} rows one, and no more than its tokens.")
        places = np.arange(longest)
        inside = places < lengths[:, None]
        return cls(
            tokens=rows[inside].astype(np.int32),
            is_answer=np.broadcast_to(places >= prompts[:, None], rows.shape)[inside],
            starts=np.cumsum(lengths) - lengths,
            lengths=lengths,
            prompt_lengths=prompts,
            record_index=np.arange(count),
            answers=np.zeros(count, np.int32),
            category_codes=np.full(count, -1, np.int32),
            category_names=(),
            truncated=np.zeros(count, bool),
        )

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
        """The examples at `index` i64[M], in that order; they share the token arrays with these.

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
        """i64[N], ascending, the number of each example's record among the records that have examples."""
        return np.cumsum(np.diff(self.record_index, prepend=self.record_index[:1]) != 0)

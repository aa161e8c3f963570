"""Sixteen categories of small, exactly gradable problems: instruction records and pretraining text.

A demonstration of federated tuning needs a task whose answers are right or wrong, that a model of a few million parameters
can learn, and whose clients differ in kind. Each category is one skill, so that "a client has few categories" is a natural
non-IID split.

A problem is identified by its canonical content, whatever its wording (and whatever the order of its items if the answer
does not depend on it). A hash of that identity determines its split, so that train and test, and pretraining text and test,
are disjoint for every pair of seeds and counts, without bookkeeping.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from devft_jax.data.microtasks.problems import Problem
from devft_jax.data.microtasks.templates import CATEGORIES, TABLE
from devft_jax.data.records import Record
from devft_jax.errors import InputError

Split = Literal["train", "test"]

# One problem in TEST_SHARE belongs to the test split.
TEST_SHARE = 8

# A category counts as exhausted after this many consecutive draws without a new record: the smallest
# spaces have some thousands of wordings, so a missing one would have been drawn by then.
_FRUITLESS_DRAWS = 40_000


class Document(NamedTuple):
    """Pretraining text.

    Attributes:
      text: the document.
      answers: the (start, end) characters of each answer in it.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def generate(split: Split, count: int, seed: int = 0, categories: Sequence[str] = CATEGORIES) -> list[Record]:
    """Distinct instruction records, balanced over the categories.

    Records of the categories alternate, so every prefix is balanced too; the first categories have one record more if
    `count` is not a multiple. A category's records depend on the seed and the split, not on the other categories.

    Args:
      split: "train" or "test"; no problem, however worded, is in both, for any pair of seeds.
      count: records in all, at least 1.
      seed: other seeds give other records of the same split.
      categories: names from `CATEGORIES`, each once.

    Returns:
      Records whose (instruction, input) pairs are pairwise different.

    Raises:
      InputError: an unknown split or category, a bad count, or a category with too few problems.
    """
    if split not in ("train", "test"):
        raise InputError(f"split: '{split}' is unknown; use 'train' or 'test'.")
    if count < 1:
        raise InputError(f"count: {count} microtask records were requested; request at least 1.")
    _check_categories(categories)
    share, remainder = divmod(count, len(categories))
    columns = [_records(category, split, share + (index < remainder), seed) for index, category in enumerate(categories)]
    return [columns[index % len(columns)][index // len(columns)] for index in range(count)]


def _check_categories(categories: Sequence[str]) -> None:
    if not categories:
        raise InputError(f"categories: none were given; choose from {', '.join(CATEGORIES)}.")
    for category in categories:
        if category not in TABLE:
            raise InputError(f"categories: '{category}' is not a microtask; choose from {', '.join(CATEGORIES)}.")
    if len(set(categories)) < len(categories):
        raise InputError(f"categories: {', '.join(categories)} has a duplicate; name each category once.")


def _records(category: str, split: Split, count: int, seed: int) -> list[Record]:
    """`count` distinct records of one category, a prefix of the result for any larger count."""
    rng = random.Random(f"{category} {split} {seed}")
    found: dict[tuple[str, str], Record] = {}
    fruitless = 0
    while len(found) < count:
        problem = TABLE[category].draw(rng)
        fruitless += 1
        if fruitless > _FRUITLESS_DRAWS:
            raise InputError(
                f"count: {count} different {split} records of the microtask category '{category}' were requested, but there "
                f"are about {len(found)}; lower the count or name more categories."
            )
        if split_of(category, problem.identity) != split:
            continue
        form = rng.choice(TABLE[category].instructions)
        instruction, text = (part.format_map(problem.fields) for part in form)
        if (instruction, text) not in found:
            origin = f"microtasks/{category}/{split}/seed-{seed}:{len(found) + 1}"
            found[instruction, text] = Record(instruction, text, problem.fields["answer"], category, origin)
            fruitless = 0
    return list(found.values())


def split_of(category: str, identity: str) -> Split:
    """The split of a problem, from its category and canonical identity alone.

    Args:
      category: name of the category.
      identity: canonical identity of the problem.
    """
    # Not a checksum such as CRC, which is linear in the bits and would split along digit patterns.
    digest = hashlib.blake2b(f"{category}\n{identity}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def solved_documents(count: int, seed: int = 0) -> Iterator[Document]:
    """Pretraining text of the train split: the same skills in other formats than the instructions.

    A document is 4 to 10 solved problems, one per line. Six in ten documents repeat one form of one category, like a
    few-shot prompt; the others mix forms, of one category or of all of them.

    Args:
      count: number of documents.
      seed: other seeds give other documents.

    Yields:
      One document, lines joined by newlines, without a final newline.
    """
    rng = random.Random(f"documents {seed}")
    for _ in range(count):
        lines = rng.randint(4, 10)
        style = rng.random()
        category = rng.choice(CATEGORIES)
        form = rng.choice(TABLE[category].documents)
        text, answers = "", []
        for _ in range(lines):
            if style >= 0.8:
                category = rng.choice(CATEGORIES)
            if style >= 0.6:
                form = rng.choice(TABLE[category].documents)
            fields = _train_problem(category, rng).fields
            before, after = form.split("{answer}")
            text += ("\n" if text else "") + before.format_map(fields)
            answers.append((len(text), len(text) + len(fields["answer"])))
            text += fields["answer"] + after
        yield Document(text, tuple(answers))


def _train_problem(category: str, rng: random.Random) -> Problem:
    while True:
        problem = TABLE[category].draw(rng)
        if split_of(category, problem.identity) == "train":
            return problem

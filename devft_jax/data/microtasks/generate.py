"""Sixteen families of tiny, exactly gradable problems: instruction records and pretraining text.

A demonstration of federated tuning needs a task whose answers are right or wrong, that a model of
a few million parameters can learn, and whose clients differ in kind. Each category here is one
skill (copying, sorting, counting, comparing, arithmetic, dates, boolean expressions, look-ups),
so that "a client sees few categories" is a natural non-IID split. The problems are made up here; no
paper defines them and no data set is read.

A category is a function that draws a problem and two lists of surface forms for it:

- `instructions`, the (instruction, input) paraphrases that `generate` turns into records;
- `documents`, single lines in other formats that `solved_documents` strings together, answer last. A
  base model that read those has the skills and the vocabulary without ever having seen the
  instruction format, which is what tuning then teaches.

A problem is identified by its canonical content, whatever its wording (and whatever the order of
its items where the answer does not depend on it). A hash of that identity decides its split, so
that train and test, and pretraining text and test, are disjoint for every pair of seeds and counts
without any bookkeeping.
"""

import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from devft_jax.data.sources import Record
from devft_jax.errors import InputError

Split = Literal["train", "test"]

# One problem in TEST_SHARE belongs to the test split.
TEST_SHARE = 8

# A category counts as exhausted after this many draws in a row without a new record: the smallest
# spaces hold some thousands of wordings, so by then a missing one would have turned up.
_FRUITLESS_DRAWS = 40_000

_KINDS: dict[str, tuple[str, ...]] = {
    kind: tuple(members.split())
    for kind, members in (
        (
            "animal",
            "cat dog cow pig hen fox bear wolf goat frog mouse horse snake lion tiger sheep ant",
        ),
        ("colour", "red blue green white black pink grey brown yellow purple"),
        ("food", "bread milk rice cake soup cheese butter apple bean meat pie corn"),
        ("body part", "hand foot arm leg nose ear eye mouth knee neck head toe"),
        ("garment", "hat coat shoe sock shirt dress boot cap glove scarf"),
    )
}
_OBJECT_TEXT = """
    house door wall tree road river ship book cup box bag bell ball rope lamp desk bed key sun moon
    star sky rain snow wind sea lake hill sand stone iron wood fire ice day night year week town
    farm field garden song game story word name line page pen map coin train car boat wheel nail
    hammer knife spoon plate glass clock bridge window table room floor roof market letter paper
    money time home light sound dream peace hope art flag gate path seed tent cave
"""
_OBJECTS = tuple(_OBJECT_TEXT.split())
WORDS: tuple[str, ...] = tuple(word for kind in _KINDS.values() for word in kind) + _OBJECTS

_NOT_OF_KIND = {kind: tuple(word for word in WORDS if word not in members) for kind, members in _KINDS.items()}

_NAME_TEXT = """
    Anna Ben Tom Kate John Mary Jack Lucy Sam Emma Paul Max Ella Leo Nina Adam Ruth Alice Peter
    Henry
"""
_NAMES = tuple(_NAME_TEXT.split())
_ORDINALS = ("first", "second", "third", "fourth")
_MONTHS = (
    ("January", 31),
    ("February", 28),
    ("March", 31),
    ("April", 30),
    ("May", 31),
    ("June", 30),
    ("July", 31),
    ("August", 31),
    ("September", 30),
    ("October", 31),
    ("November", 30),
    ("December", 31),
)


class Problem(NamedTuple):
    """One problem: its canonical `identity` and the `fields` that surface forms are filled with."""

    identity: str
    fields: dict[str, str]


class Document(NamedTuple):
    """Pretraining text and the (start, end) characters of each answer in it."""

    text: str
    answers: tuple[tuple[int, int], ...]


class Category(NamedTuple):
    """One skill: how to draw a problem, its instruction paraphrases and its pretraining lines."""

    draw: Callable[[random.Random], Problem]
    instructions: tuple[tuple[str, str], ...]
    documents: tuple[str, ...]


def _listed(items: Sequence[object]) -> dict[str, str]:
    """The two ways in which surface forms write a list."""
    texts = [str(item) for item in items]
    return {"items": " ".join(texts), "commas": ", ".join(texts)}


def _unordered(items: Sequence[object]) -> str:
    return " ".join(sorted(str(item) for item in items))


def _words(rng: random.Random, fewest: int, most: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(fewest, most))


def _copy(rng: random.Random) -> Problem:
    words = _words(rng, 2, 4)
    return Problem(" ".join(words), {**_listed(words), "answer": " ".join(words)})


def _reverse_words(rng: random.Random) -> Problem:
    words = _words(rng, 2, 4)
    return Problem(" ".join(words), {**_listed(words), "answer": " ".join(reversed(words))})


def _nth_word(rng: random.Random) -> Problem:
    words = _words(rng, 3, 5)
    index = rng.randrange(min(len(words), len(_ORDINALS)) + 1) - 1
    position = "last" if index < 0 else _ORDINALS[index]
    return Problem(
        f"{position}: {' '.join(words)}",
        {**_listed(words), "position": position, "answer": words[index]},
    )


def _sort_words(rng: random.Random) -> Problem:
    words = _words(rng, 2, 3)
    return Problem(_unordered(words), {**_listed(words), "answer": " ".join(sorted(words))})


def _count_words(rng: random.Random) -> Problem:
    words = _words(rng, 2, 7)
    return Problem(_unordered(words), {**_listed(words), "answer": str(len(words))})


def _replace_word(rng: random.Random) -> Problem:
    new, *words = _words(rng, 4, 5)
    old = rng.choice(words)
    answer = " ".join(new if word == old else word for word in words)
    return Problem(
        f"{old} {new}: {' '.join(words)}",
        {**_listed(words), "old": old, "new": new, "answer": answer},
    )


def _kind(rng: random.Random) -> Problem:
    kind = rng.choice(tuple(_KINDS))
    answer = rng.choice(_KINDS[kind])
    words = [answer, *rng.sample(_NOT_OF_KIND[kind], rng.randint(2, 3))]
    rng.shuffle(words)
    return Problem(
        f"{kind}: {_unordered(words)}",
        {
            **_listed(words),
            "kind": kind,
            "a_kind": ("an " if kind[0] in "aeiou" else "a ") + kind,
            "answer": answer,
        },
    )


def _sort_numbers(rng: random.Random) -> Problem:
    numbers = rng.sample(range(100), rng.randint(3, 4))
    return Problem(
        _unordered(numbers),
        {**_listed(numbers), "answer": " ".join(str(number) for number in sorted(numbers))},
    )


def _compare_numbers(rng: random.Random) -> Problem:
    numbers = rng.sample(range(100), 2)
    wanted, choose = rng.choice((("larger", max), ("smaller", min)))
    return Problem(
        f"{wanted}: {_unordered(numbers)}",
        {
            "a": str(numbers[0]),
            "b": str(numbers[1]),
            "wanted": wanted,
            "answer": str(choose(numbers)),
        },
    )


def _parity(rng: random.Random) -> Problem:
    parity = rng.randrange(2)
    answer = 2 * rng.randrange(50) + parity
    others = [2 * half + 1 - parity for half in rng.sample(range(50), rng.randint(2, 3))]
    numbers = [answer, *others]
    rng.shuffle(numbers)
    wanted = ("even", "odd")[parity]
    return Problem(
        f"{wanted}: {_unordered(numbers)}",
        {**_listed(numbers), "wanted": wanted, "answer": str(answer)},
    )


def _addition(rng: random.Random) -> Problem:
    terms = [rng.randrange(80), rng.randrange(20)]
    rng.shuffle(terms)
    return Problem(_unordered(terms), {"a": str(terms[0]), "b": str(terms[1]), "answer": str(sum(terms))})


def _subtraction(rng: random.Random) -> Problem:
    b = rng.randrange(20)
    a = rng.randint(b, 99)
    return Problem(f"{a} {b}", {"a": str(a), "b": str(b), "answer": str(a - b)})


def _sequence(rng: random.Random) -> Problem:
    step = rng.randint(1, 10)
    length = rng.randint(3, 4)
    lowest = rng.randint(0, 99 - step * length)
    terms = [lowest + step * index for index in range(length + 1)]
    if rng.random() < 0.5:
        terms.reverse()
    *shown, answer = terms
    fields = _listed(shown)
    return Problem(fields["items"], {**fields, "answer": str(answer)})


def _boolean(rng: random.Random) -> Problem:
    def literal() -> tuple[str, bool]:
        value, negated = rng.random() < 0.5, rng.random() < 0.5
        return ("not " if negated else "") + str(value).lower(), value != negated

    def joined(left: tuple[str, bool], right: tuple[str, bool]) -> tuple[str, bool]:
        if rng.random() < 0.5:
            return f"{left[0]} and {right[0]}", left[1] and right[1]
        return f"{left[0]} or {right[0]}", left[1] or right[1]

    text, value = joined(literal(), literal())
    shape = rng.randrange(5)
    if shape == 1:
        text, value = f"not ({text})", not value
    elif shape == 2:
        text, value = joined((f"({text})", value), literal())
    elif shape == 3:
        text, value = joined(literal(), (f"({text})", value))
    elif shape == 4:
        other_text, other_value = joined(literal(), literal())
        text, value = joined((f"({text})", value), (f"({other_text})", other_value))
    return Problem(text, {"expression": text, "answer": str(value).lower()})


def _lookup(rng: random.Random) -> Problem:
    count = rng.randint(2, 3)
    names = rng.sample(_NAMES, count)
    words = rng.sample(_OBJECTS, count)
    index = rng.randrange(count)
    pairs = list(zip(names, words, strict=True))
    entries = [f"{name}: {word}" for name, word in pairs]
    return Problem(
        f"{names[index]} in {_unordered(entries)}",
        {
            "entries": ", ".join(entries),
            "story": " ".join(f"{name} has the {word}." for name, word in pairs),
            "name": names[index],
            "answer": words[index],
        },
    )


def _dates(rng: random.Random) -> Problem:
    month = rng.randrange(12)
    day = rng.randint(1, _MONTHS[month][1])
    days = rng.randint(1, 3)
    direction = rng.choice(("after", "before"))
    target_month = month
    target_day = day + days if direction == "after" else day - days
    # The end of February depends on the year, so no problem crosses it.
    if target_day < 1:
        if _MONTHS[month][0] == "March":
            return _dates(rng)
        target_month = (month - 1) % 12
        target_day += _MONTHS[target_month][1]
    elif target_day > _MONTHS[month][1]:
        if _MONTHS[month][0] == "February":
            return _dates(rng)
        target_day -= _MONTHS[month][1]
        target_month = (month + 1) % 12
    span = "1 day" if days == 1 else f"{days} days"
    date = f"{day} {_MONTHS[month][0]}"
    return Problem(
        f"{span} {direction} {date}",
        {
            "date": date,
            "span": span,
            "sign": "+" if direction == "after" else "-",
            "days": str(days),
            "direction": direction,
            "answer": f"{target_day} {_MONTHS[target_month][0]}",
        },
    )


# Public so that a reader of the data can see, and a test can invert, every surface form.
TABLE: dict[str, Category] = {
    "copy": Category(
        _copy,
        (
            ("Repeat these words.", "{items}"),
            ("Copy the text exactly.", "{items}"),
            ("Write the same words again.", "{items}"),
        ),
        (
            "copy: {items} -> {answer}",
            "He said {items} and she repeated {answer}.",
            "Q: Say again: {items}. A: {answer}",
            "{items} = {answer}",
            "The same words as {items} are {answer}.",
        ),
    ),
    "reverse_words": Category(
        _reverse_words,
        (
            ("Reverse the order of the words.", "{items}"),
            ("Write these words backwards, last word first.", "{items}"),
            ("Put the words in reverse order.", "{items}"),
        ),
        (
            "reverse: {items} -> {answer}",
            "The words {items} in reverse order are {answer}.",
            "Q: What is {items} backwards? A: {answer}",
            "{items} | reversed | {answer}",
            "Read from the last to the first, {items} becomes {answer}.",
        ),
    ),
    "nth_word": Category(
        _nth_word,
        (
            ("What is the {position} word?", "{items}"),
            ("Give the {position} word of the list.", "{items}"),
            ("Write only the {position} word.", "{items}"),
        ),
        (
            "{position} of {items} -> {answer}",
            "In the list {commas} the {position} word is {answer}.",
            "Q: Which word comes {position} in {items}? A: {answer}",
            "{items} | {position} | {answer}",
            "The {position} word in {items} is {answer}.",
        ),
    ),
    "sort_words": Category(
        _sort_words,
        (
            ("Sort the words alphabetically.", "{items}"),
            ("Put these words in alphabetical order.", "{items}"),
            ("Order the words from A to Z.", "{items}"),
        ),
        (
            "a to z: {items} -> {answer}",
            "The words {commas} in order of the alphabet: {answer}.",
            "Q: How does a dictionary order {items}? A: {answer}",
            "{items} | alphabetical | {answer}",
            "Sorted alphabetically, {items} becomes {answer}.",
        ),
    ),
    "count_words": Category(
        _count_words,
        (
            ("How many words are there?", "{items}"),
            ("Count the words.", "{items}"),
            ("Give the number of words in the text.", "{items}"),
        ),
        (
            "count: {items} -> {answer}",
            "The list {commas} has a length of {answer}.",
            "Q: How many words are in {items}? A: {answer}",
            "{items} | number of words | {answer}",
            "If you count {items} you get {answer}.",
        ),
    ),
    "replace_word": Category(
        _replace_word,
        (
            ("Replace {old} with {new}.", "{items}"),
            ("Write {new} instead of {old}.", "{items}"),
            ("Change the word {old} to {new} in the text.", "{items}"),
        ),
        (
            "{items} ; {old} -> {new} ; {answer}",
            "With {new} in place of {old}, {items} becomes {answer}.",
            "Q: What is {items} if {old} is replaced by {new}? A: {answer}",
            "change {old} into {new}: {items} => {answer}",
        ),
    ),
    "kind": Category(
        _kind,
        (
            ("Which word is {a_kind}?", "{items}"),
            ("Find the {kind} in the list.", "{items}"),
            ("Pick the word that names {a_kind}.", "{items}"),
        ),
        (
            "{kind} in {items} -> {answer}",
            "One of the words {commas} is {a_kind}: {answer}.",
            "Q: Which of {commas} is {a_kind}? A: {answer}",
            "{items} | {kind} | {answer}",
            "Among {items} the {kind} is {answer}.",
        ),
    ),
    "sort_numbers": Category(
        _sort_numbers,
        (
            ("Sort the numbers in ascending order.", "{items}"),
            ("Order these numbers from smallest to largest.", "{items}"),
            ("Write the numbers in increasing order.", "{items}"),
        ),
        (
            "sorted: {items} -> {answer}",
            "The numbers {commas} in ascending order: {answer}.",
            "Q: How do {items} go from the smallest to the largest? A: {answer}",
            "{items} | increasing | {answer}",
            "After sorting, {items} becomes {answer}.",
        ),
    ),
    "compare_numbers": Category(
        _compare_numbers,
        (
            ("Which number is {wanted}?", "{a} or {b}"),
            ("Give the {wanted} of the two numbers.", "{a} {b}"),
            ("Pick the {wanted} number.", "{a}, {b}"),
        ),
        (
            "{wanted}: {a} {b} -> {answer}",
            "Q: Which is {wanted}, {a} or {b}? A: {answer}",
            "The {wanted} of {a} and {b} is {answer}.",
            "{a} {b} | {wanted} | {answer}",
            "If you pick the {wanted} of the numbers {a} and {b} you get {answer}.",
        ),
    ),
    "parity": Category(
        _parity,
        (
            ("Which number is {wanted}?", "{items}"),
            ("Find the {wanted} number.", "{items}"),
            ("Only one number is {wanted}. Write it.", "{items}"),
        ),
        (
            "{wanted}: {items} -> {answer}",
            "Only one of the numbers {commas} is {wanted}: {answer}.",
            "Q: Which of {commas} is {wanted}? A: {answer}",
            "{items} | {wanted} | {answer}",
        ),
    ),
    "addition": Category(
        _addition,
        (
            ("Add the two numbers.", "{a} {b}"),
            ("What is the sum?", "{a} + {b}"),
            ("Calculate the total of the numbers.", "{a} and {b}"),
        ),
        (
            "{a} + {b} = {answer}",
            "{a} plus {b} is {answer}.",
            "Q: How much is {a} and {b} together? A: {answer}",
            "The sum of {a} and {b} is {answer}.",
            "add {a} {b} -> {answer}",
        ),
    ),
    "subtraction": Category(
        _subtraction,
        (
            ("Subtract the second number from the first.", "{a} {b}"),
            ("What is the difference?", "{a} - {b}"),
            ("Take {b} away from {a}.", ""),
        ),
        (
            "{a} - {b} = {answer}",
            "{a} minus {b} is {answer}.",
            "Q: You have {a} and lose {b}. How much is left? A: {answer}",
            "The difference of {a} and {b} is {answer}.",
            "subtract {a} {b} -> {answer}",
        ),
    ),
    "sequence": Category(
        _sequence,
        (
            ("What number comes next?", "{items}"),
            ("Continue the sequence with one number.", "{items}"),
            ("Give the next number of the series.", "{items}"),
        ),
        (
            "next: {items} -> {answer}",
            "{commas} and then {answer}.",
            "Q: Which number follows {commas}? A: {answer}",
            "The sequence {items} goes on with {answer}.",
            "{items} | next | {answer}",
        ),
    ),
    "boolean": Category(
        _boolean,
        (
            ("Is this true or false?", "{expression}"),
            ("Evaluate the boolean expression.", "{expression}"),
            ("Give the truth value.", "{expression}"),
            ("What does the logical expression evaluate to?", "{expression}"),
        ),
        (
            "{expression} = {answer}",
            "{expression} is {answer}.",
            "Q: What is the value of {expression}? A: {answer}",
            "logic: {expression} -> {answer}",
            "The expression {expression} evaluates to {answer}.",
        ),
    ),
    "lookup": Category(
        _lookup,
        (
            ("Which word belongs to {name}?", "{entries}"),
            ("Look up {name}.", "{entries}"),
            ("What does {name} have?", "{story}"),
        ),
        (
            "{entries} ; {name} -> {answer}",
            "{story} So {name} has the {answer}.",
            "{story} Q: And {name}? A: {answer}",
            "In the table {entries} the word of {name} is {answer}.",
            "{entries} | {name} | {answer}",
        ),
    ),
    "dates": Category(
        _dates,
        (
            ("Which date is {span} {direction} this one?", "{date}"),
            ("Give the date {span} {direction} {date}.", ""),
            ("What day is it {span} {direction} this date?", "{date}"),
        ),
        (
            "{date} {sign} {days} = {answer}",
            "from {date} {span} {direction}: {answer}",
            "Q: It is {date}. What is the date {span} {direction}? A: {answer}",
            "{date} | {span} {direction} | {answer}",
            "The date {span} {direction} {date} is {answer}.",
        ),
    ),
}

CATEGORIES: tuple[str, ...] = tuple(TABLE)


def split_of(category: str, identity: str) -> Split:
    """The split that a problem belongs to, from its category and canonical identity alone."""
    # Not a checksum such as CRC: it is linear in the bits, and would split along digit patterns.
    digest = hashlib.blake2b(f"{category}\n{identity}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def _records(category: str, split: Split, count: int, seed: int) -> list[Record]:
    """`count` distinct records of one category, a prefix of what any larger count gives."""
    rng = random.Random(f"{category} {split} {seed}")
    found: dict[tuple[str, str], Record] = {}
    fruitless = 0
    while len(found) < count:
        problem = TABLE[category].draw(rng)
        fruitless += 1
        if fruitless > _FRUITLESS_DRAWS:
            raise InputError(
                f"count: microtask category '{category}' was asked for {count} different {split} "
                f"records and has about {len(found)}; lower the count or name more categories."
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


def generate(split: Split, count: int, seed: int = 0, categories: Sequence[str] = CATEGORIES) -> list[Record]:
    """Distinct instruction records, balanced over the categories.

    Records of the categories alternate, so every prefix is balanced too; the categories named first
    hold one record more when `count` does not divide. A category's records depend on the seed and
    the split, not on the other categories.

    Args:
        split: "train" or "test"; no problem, however worded, is in both, for any pair of seeds.
        count: records in all, at least 1.
        seed: another seed gives other records of the same split.
        categories: names from `CATEGORIES`, each once.

    Returns:
        Records whose (instruction, input) pairs are pairwise different.

    Raises:
        InputError: an unknown split or category, a bad count, or a category with too few problems.
    """
    if split not in ("train", "test"):
        raise InputError(f"split: '{split}' is unknown; use 'train' or 'test'.")
    if count < 1:
        raise InputError(f"count: {count} microtask records were asked for; ask for at least 1.")
    _check_categories(categories)
    share, remainder = divmod(count, len(categories))
    columns = [_records(category, split, share + (index < remainder), seed) for index, category in enumerate(categories)]
    return [columns[index % len(columns)][index // len(columns)] for index in range(count)]


def _check_categories(categories: Sequence[str]) -> None:
    if not categories:
        raise InputError(f"categories: none were named; choose from {', '.join(CATEGORIES)}.")
    for category in categories:
        if category not in TABLE:
            raise InputError(f"categories: '{category}' is no microtask; choose from {', '.join(CATEGORIES)}.")
    if len(set(categories)) < len(categories):
        raise InputError(f"categories: {', '.join(categories)} names one twice; name each category once.")


def solved_documents(count: int, seed: int = 0) -> Iterator[Document]:
    """Pretraining text of the train split: the same skills in other formats than the instructions.

    A document is 4 to 10 solved problems, one a line. Six in ten documents repeat one form of one
    category, as a few-shot prompt would; the others mix forms, of one category or of all of them.

    Args:
        count: documents to yield.
        seed: another seed gives other documents.

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


def grade(predicted: str, record: Record) -> bool:
    """Exact match of the answer, whitespace around it aside."""
    return predicted.strip() == record.output.strip()

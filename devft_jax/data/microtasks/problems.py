"""The sixteen kinds of problems: how each is drawn, with its canonical identity and exact answer.

Each kind is one skill (copying, sorting, counting, comparing, arithmetic, dates, boolean expressions, look-ups). The
problems are our own; they are not from a paper or a data set.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

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
    """One problem.

    Attributes:
      identity: its canonical content, whatever its wording.
      fields: values for the placeholders of surface forms, including `answer`.
    """

    identity: str
    fields: dict[str, str]


def _listed(items: Sequence[object]) -> dict[str, str]:
    """The two ways in which surface forms write a list."""
    texts = [str(item) for item in items]
    return {"items": " ".join(texts), "commas": ", ".join(texts)}


def _unordered(items: Sequence[object]) -> str:
    return " ".join(sorted(str(item) for item in items))


def _words(rng: random.Random, fewest: int, most: int) -> list[str]:
    return rng.sample(WORDS, rng.randint(fewest, most))


def draw_copy(rng: random.Random) -> Problem:
    """Words to repeat.

    Args:
      rng: what it is drawn from.
    """
    words = _words(rng, 2, 4)
    return Problem(" ".join(words), {**_listed(words), "answer": " ".join(words)})


def draw_reverse_words(rng: random.Random) -> Problem:
    """Words to write in reverse order.

    Args:
      rng: what it is drawn from.
    """
    words = _words(rng, 2, 4)
    return Problem(" ".join(words), {**_listed(words), "answer": " ".join(reversed(words))})


def draw_nth_word(rng: random.Random) -> Problem:
    """The word at a position of a list.

    Args:
      rng: what it is drawn from.
    """
    words = _words(rng, 3, 5)
    index = rng.randrange(min(len(words), len(_ORDINALS)) + 1) - 1
    position = "last" if index < 0 else _ORDINALS[index]
    return Problem(
        f"{position}: {' '.join(words)}",
        {**_listed(words), "position": position, "answer": words[index]},
    )


def draw_sort_words(rng: random.Random) -> Problem:
    """Words to sort alphabetically.

    Args:
      rng: what it is drawn from.
    """
    words = _words(rng, 2, 3)
    return Problem(_unordered(words), {**_listed(words), "answer": " ".join(sorted(words))})


def draw_count_words(rng: random.Random) -> Problem:
    """Words to count.

    Args:
      rng: what it is drawn from.
    """
    words = _words(rng, 2, 7)
    return Problem(_unordered(words), {**_listed(words), "answer": str(len(words))})


def draw_replace_word(rng: random.Random) -> Problem:
    """A word to replace in a text.

    Args:
      rng: what it is drawn from.
    """
    new, *words = _words(rng, 4, 5)
    old = rng.choice(words)
    answer = " ".join(new if word == old else word for word in words)
    return Problem(
        f"{old} {new}: {' '.join(words)}",
        {**_listed(words), "old": old, "new": new, "answer": answer},
    )


def draw_kind(rng: random.Random) -> Problem:
    """The one word of a list that names a thing of a kind.

    Args:
      rng: what it is drawn from.
    """
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


def draw_sort_numbers(rng: random.Random) -> Problem:
    """Numbers to sort.

    Args:
      rng: what it is drawn from.
    """
    numbers = rng.sample(range(100), rng.randint(3, 4))
    return Problem(
        _unordered(numbers),
        {**_listed(numbers), "answer": " ".join(str(number) for number in sorted(numbers))},
    )


def draw_compare_numbers(rng: random.Random) -> Problem:
    """The larger or smaller of two numbers.

    Args:
      rng: what it is drawn from.
    """
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


def draw_parity(rng: random.Random) -> Problem:
    """The one even or odd number of a list.

    Args:
      rng: what it is drawn from.
    """
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


def draw_addition(rng: random.Random) -> Problem:
    """A sum below 100.

    Args:
      rng: what it is drawn from.
    """
    terms = [rng.randrange(80), rng.randrange(20)]
    rng.shuffle(terms)
    return Problem(_unordered(terms), {"a": str(terms[0]), "b": str(terms[1]), "answer": str(sum(terms))})


def draw_subtraction(rng: random.Random) -> Problem:
    """A difference that is not negative.

    Args:
      rng: what it is drawn from.
    """
    b = rng.randrange(20)
    a = rng.randint(b, 99)
    return Problem(f"{a} {b}", {"a": str(a), "b": str(b), "answer": str(a - b)})


def draw_sequence(rng: random.Random) -> Problem:
    """The next number of an arithmetic sequence.

    Args:
      rng: what it is drawn from.
    """
    step = rng.randint(1, 10)
    length = rng.randint(3, 4)
    lowest = rng.randint(0, 99 - step * length)
    terms = [lowest + step * index for index in range(length + 1)]
    if rng.random() < 0.5:
        terms.reverse()
    *shown, answer = terms
    fields = _listed(shown)
    return Problem(fields["items"], {**fields, "answer": str(answer)})


def draw_boolean(rng: random.Random) -> Problem:
    """The value of a boolean expression.

    Args:
      rng: what it is drawn from.
    """

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


def draw_lookup(rng: random.Random) -> Problem:
    """What belongs to a name in a table.

    Args:
      rng: what it is drawn from.
    """
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


def draw_dates(rng: random.Random) -> Problem:
    """The date some days before or after another.

    Args:
      rng: what it is drawn from.
    """
    month = rng.randrange(12)
    day = rng.randint(1, _MONTHS[month][1])
    days = rng.randint(1, 3)
    direction = rng.choice(("after", "before"))
    target_month = month
    target_day = day + days if direction == "after" else day - days
    # The end of February depends on the year, so no problem crosses it.
    if target_day < 1:
        if _MONTHS[month][0] == "March":
            return draw_dates(rng)
        target_month = (month - 1) % 12
        target_day += _MONTHS[target_month][1]
    elif target_day > _MONTHS[month][1]:
        if _MONTHS[month][0] == "February":
            return draw_dates(rng)
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

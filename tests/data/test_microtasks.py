"""Microtasks: right answers by a second derivation, disjoint splits, determinism, plain errors.

Every record and every pretraining line is parsed back through its surface form into the fields of
its problem, and an oracle written here, on other means than the generator's, answers it anew.
"""

import datetime
import itertools
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data.microtasks.generate import generate, solved_documents, split_of
from devft_jax.data.microtasks.templates import CATEGORIES, TABLE
from devft_jax.data.records import Record
from devft_jax.errors import InputError

KIND_OF = {
    word: kind
    for kind, words in {
        "animal": "ant bear cat cow dog fox frog goat hen horse lion mouse pig sheep snake tiger wolf",
        "colour": "black blue brown green grey pink purple red white yellow",
        "food": "apple bean bread butter cake cheese corn meat milk pie rice soup",
        "body part": "arm ear eye foot hand head knee leg mouth neck nose toe",
        "garment": "boot cap coat dress glove hat scarf shirt shoe sock",
    }.items()
    for word in words.split()
}
PATTERNS = {
    "commas": r"\w+(?:, \w+)+",
    "items": r"\w+(?: \w+)+",
    "entries": r"\w+: \w+(?:, \w+: \w+)+",
    "story": r"\w+ has the \w+\.(?: \w+ has the \w+\.)+",
    "expression": r"[a-z() ]+",
    "answer": r"[\w ]+",
    "date": r"\d+ \w+",
    "span": r"\d days?",
    "kind": "|".join(sorted(set(KIND_OF.values()))),
    "a_kind": r"an? [a-z ]+",
    "sign": r"[+-]",
}


def inverted(form: str) -> re.Pattern[str]:
    """A regular expression that reads the fields back from a text made by `form`."""
    pieces = re.split(r"\{(\w+)\}", form)
    pattern, seen = "", set()
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pattern += re.escape(piece)
        elif piece in seen:
            pattern += f"(?P={piece})"
        else:
            seen.add(piece)
            pattern += f"(?P<{piece}>{PATTERNS.get(piece, r'[A-Za-z0-9]+')})"
    return re.compile(pattern)


# An instruction and its input are joined by a tab, which no text holds.
RECORD_FORMS = {name: [inverted("\t".join(form)) for form in category.instructions] for name, category in TABLE.items()}
LINE_FORMS = {name: [inverted(form) for form in category.documents] for name, category in TABLE.items()}


def items(fields: dict[str, str]) -> list[str]:
    return fields.get("items", fields.get("commas", "")).replace(",", "").split()


def pairs(fields: dict[str, str]) -> dict[str, str]:
    text = fields.get("entries", fields.get("story", ""))
    return dict(re.findall(r"(\w+)(?:: | has the )(\w+)", text))


def kind_wanted(fields: dict[str, str]) -> str:
    return fields.get("kind") or fields["a_kind"].split(" ", 1)[1]


def days_and_date(fields: dict[str, str]) -> tuple[int, str]:
    days = int(fields.get("days") or fields["span"].split()[0])
    backwards = fields.get("sign") == "-" or fields.get("direction") == "before"
    return (-days if backwards else days), fields["date"]


def shifted(date: str, days: int, year: int) -> str:
    start = datetime.datetime.strptime(f"{date} {year}", "%d %B %Y")
    end = start + datetime.timedelta(days=days)
    return f"{end.day} {end.strftime('%B')}"


def only(found: list[str]) -> str:
    assert len(found) == 1, found
    return found[0]


def answer(category: str, fields: dict[str, str]) -> str:
    """The right answer, derived from the fields that a text shows."""
    words = items(fields)
    match category:
        case "copy":
            return " ".join(words)
        case "reverse_words":
            return " ".join(words[::-1])
        case "nth_word":
            places = {"first": 0, "second": 1, "third": 2, "fourth": 3, "last": len(words) - 1}
            return words[places[fields["position"]]]
        case "sort_words":
            return " ".join(min(itertools.permutations(words)))
        case "count_words":
            return str(1 + fields.get("items", fields.get("commas", "")).count(" "))
        case "replace_word":
            assert fields["old"] in words
            assert fields["new"] not in words
            return re.sub(rf"\b{fields['old']}\b", fields["new"], fields["items"])
        case "kind":
            return only([word for word in words if KIND_OF.get(word) == kind_wanted(fields)])
        case "sort_numbers":
            return " ".join(map(str, min(itertools.permutations(map(int, words)))))
        case "compare_numbers":
            a, b = int(fields["a"]), int(fields["b"])
            assert a != b
            return str((a + b + abs(a - b) * {"larger": 1, "smaller": -1}[fields["wanted"]]) // 2)
        case "parity":
            digits = {"even": "02468", "odd": "13579"}[fields["wanted"]]
            return only([word for word in words if word[-1] in digits])
        case "addition":
            return str(int(fields["a"]) + int(fields["b"]))
        case "subtraction":
            return str(int(fields["a"]) - int(fields["b"]))
        case "sequence":
            terms = [int(word) for word in words]
            assert len({after - before for before, after in itertools.pairwise(terms)}) == 1
            return str(2 * terms[-1] - terms[-2])
        case "boolean":
            value = eval(fields["expression"].replace("true", "True").replace("false", "False"))
            return str(value).lower()
        case "lookup":
            return pairs(fields)[fields["name"]]
        case "dates":
            days, date = days_and_date(fields)
            assert shifted(date, days, 2023) == shifted(date, days, 2024)
            return shifted(date, days, 2023)
    raise AssertionError(category)


def content(category: str, fields: dict[str, str]) -> tuple:
    """What makes two problems the same one, whatever their wording."""
    words = items(fields)
    match category:
        case "copy" | "reverse_words" | "sequence":
            key = tuple(words)
        case "nth_word":
            key = (fields["position"], *words)
        case "replace_word":
            key = (fields["old"], fields["new"], *words)
        case "kind":
            key = (kind_wanted(fields), *sorted(words))
        case "sort_words" | "count_words" | "sort_numbers":
            key = tuple(sorted(words))
        case "parity":
            key = (fields["wanted"], *sorted(words))
        case "compare_numbers" | "addition":
            key = (fields.get("wanted"), *sorted((fields["a"], fields["b"])))
        case "subtraction":
            key = (fields["a"], fields["b"])
        case "boolean":
            key = (fields["expression"],)
        case "lookup":
            key = (fields["name"], *sorted(pairs(fields).items()))
        case "dates":
            key = days_and_date(fields)
    return (category, *key)


def read_record(record: Record) -> dict[str, str]:
    text = f"{record.instruction}\t{record.input}"
    found = [form.fullmatch(text) for form in RECORD_FORMS[record.category]]
    return only([match for match in found if match]).groupdict()


def read_line(line: str) -> tuple[str, dict[str, str]]:
    """The one category and fields under which a pretraining line is a rightly solved problem."""
    found = []
    for category, forms in LINE_FORMS.items():
        for form in forms:
            match = form.fullmatch(line)
            if match:
                fields = match.groupdict()
                try:
                    right = answer(category, fields) == fields["answer"]
                except (AssertionError, KeyError, ValueError, IndexError, SyntaxError, NameError):
                    right = False
                if right:
                    found.append((category, fields))
    contents = {content(*each) for each in found}
    assert len(contents) == 1, (line, found)
    return found[0]


def contents_of(records: list[Record]) -> set[tuple]:
    return {content(record.category, read_record(record)) for record in records}


def test_there_are_sixteen_categories_with_several_forms_each():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 16
    for category in TABLE.values():
        assert 2 <= len(set(category.instructions)) <= 4
        assert len(set(category.documents)) >= 4
        assert all(form.rstrip(".").endswith("{answer}") for form in category.documents)


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_answer_is_right(category, split):
    for record in generate(split, 400, seed=11, categories=(category,)):
        assert record.category == category
        assert record.output == answer(category, read_record(record))
        assert len(record.output.split()) <= 5
        assert len(record.instruction) <= 60
        assert len(record.input) <= 70


@pytest.mark.parametrize("category", CATEGORIES)
def test_every_paraphrase_and_no_dominant_answer(category):
    records = generate("train", 400, seed=5, categories=(category,))
    used = {
        index
        for record in records
        for index, form in enumerate(RECORD_FORMS[category])
        if form.fullmatch(f"{record.instruction}\t{record.input}")
    }
    assert used == set(range(len(RECORD_FORMS[category])))
    commonest = Counter(record.output for record in records).most_common(1)[0][1]
    assert commonest <= 0.6 * len(records)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 900), st.integers(1, 900))
def test_train_and_test_share_no_problem(train_seed, test_seed, train_count, test_count):
    train = contents_of(generate("train", train_count, train_seed))
    assert not train & contents_of(generate("test", test_count, test_seed))


def test_one_problem_in_eight_is_for_testing():
    identities = [f"{a} {b}" for a in range(100) for b in range(100)]
    split = Counter(split_of("copy", identity) for identity in identities)
    # Three standard deviations of a binomial with n = 10,000 and p = 1/8.
    assert abs(split["test"] - 1250) < 3 * (10_000 * 7 / 64) ** 0.5


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from(["train", "test"]),
    st.integers(1, 300),
    st.integers(0, 10**6),
    st.lists(st.sampled_from(CATEGORIES), min_size=1, unique=True),
)
def test_records_are_distinct_balanced_and_reproducible(split, count, seed, categories):
    records = generate(split, count, seed, categories)
    assert records == generate(split, count, seed, categories)
    assert len({(record.instruction, record.input) for record in records}) == count
    held = Counter(record.category for record in records)
    assert set(held) <= set(categories)
    assert max(held.values()) - min(held[category] for category in categories) <= 1
    assert generate(split, count + 17, seed, categories)[:count] == records


def test_a_category_does_not_depend_on_its_company():
    alone = generate("test", 5, 3, ("dates",))
    together = generate("test", 5 * len(CATEGORIES), 3)
    assert alone == [record for record in together if record.category == "dates"]


def texts(count, seed):
    return [document.text for document in solved_documents(count, seed)]


def test_seeds_differ():
    assert generate("train", 64, 0) != generate("train", 64, 1)
    assert texts(8, 0) != texts(8, 1)


def test_documents_are_right_and_hold_no_test_problem():
    tested = contents_of(
        [record for seed in range(3) for category in CATEGORIES for record in generate("test", 250, seed, (category,))]
    )
    seen = Counter()
    for document in solved_documents(600, seed=7):
        lines = document.text.split("\n")
        assert 4 <= len(lines) == len(document.answers) <= 10
        for line, (start, end) in zip(lines, document.answers, strict=True):
            category, fields = read_line(line)
            assert document.text[start:end] == fields["answer"]
            assert content(category, fields) not in tested, line
            seen[category] += 1
    assert set(seen) == set(CATEGORIES)


def test_documents_do_not_show_the_instruction_format():
    text = "\n".join(texts(3000, seed=1))
    for record in generate("train", 2000) + generate("test", 800):
        assert record.instruction not in text
    assert not re.search(r"###|[Ii]nstruction|[Rr]esponse", text)


def test_every_document_form_is_used_and_documents_are_reproducible():
    documents = texts(1500, seed=2)
    assert documents == texts(1500, seed=2)
    assert documents[:40] == texts(40, seed=2)
    text = "\n".join(documents)
    for forms in LINE_FORMS.values():
        for form in forms:
            assert re.search(f"^{form.pattern}$", text, re.MULTILINE), form.pattern


def test_many_documents_repeat_one_form():
    """Few-shot documents: every line of one form, as in-context copying needs."""
    same = 0
    for document in texts(200, seed=3):
        lines = document.split("\n")
        same += any(all(form.fullmatch(line) for line in lines) for forms in LINE_FORMS.values() for form in forms)
    assert 0.4 * 200 < same < 0.8 * 200


def test_an_exhausted_category_says_so():
    with pytest.raises(InputError, match=r"50000 different test records .* 'subtraction' .* about \d+"):
        generate("test", 50_000, categories=("subtraction",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("validation", 4), "split: 'validation'"),
        (("train", 0), "count: 0"),
        (("train", -3), "count: -3"),
        (("train", 4, 0, ()), "categories: none"),
        (("train", 4, 0, ("copy", "juggling")), "categories: 'juggling'"),
        (("train", 4, 0, ("copy", "copy")), "has a duplicate"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(InputError, match=message):
        generate(*arguments)

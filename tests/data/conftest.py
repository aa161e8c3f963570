"""Records of a given number of words, small enough that a test can say every id."""

import pytest

from devft_jax.data.records import Record
from tests.conftest import WORDS


@pytest.fixture(scope="session")
def make_record():
    """Factory of records with so many words of prompt (letters) and completion (numbers)."""

    def build(prompt_words, completion_words, number=0, category=None):
        instruction = " ".join(WORDS[index % 26] for index in range(prompt_words))
        output = " ".join(str((number + index) % 1000) for index in range(completion_words))
        return Record(instruction, "", output, category, f"toy.json:{number + 1}")

    return build

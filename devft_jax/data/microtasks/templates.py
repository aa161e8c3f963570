"""The wording of problems: the paraphrases of instructions, and the lines of pretraining text.

A category is a function that draws a problem, and two lists of surface forms for it:

- `instructions`, the (instruction, input) paraphrases that `generate` turns into records;
- `documents`, single lines in other formats that `solved_documents` joins, with the answer last. A base model trained on
these has the skills and the vocabulary but has never seen the instruction format, which tuning then teaches.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from devft_jax.data.microtasks import problems
from devft_jax.data.microtasks.problems import Problem


class Category(NamedTuple):
    """One skill.

    Attributes:
      draw: draws a problem.
      instructions: its paraphrases, (instruction, input).
      documents: its pretraining lines.
    """

    draw: Callable[[random.Random], Problem]
    instructions: tuple[tuple[str, str], ...]
    documents: tuple[str, ...]


TABLE: dict[str, Category] = {
    "copy": Category(
        problems.draw_copy,
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
        problems.draw_reverse_words,
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
        problems.draw_nth_word,
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
        problems.draw_sort_words,
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
        problems.draw_count_words,
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
        problems.draw_replace_word,
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
        problems.draw_kind,
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
        problems.draw_sort_numbers,
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
        problems.draw_compare_numbers,
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
        problems.draw_parity,
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
        problems.draw_addition,
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
        problems.draw_subtraction,
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
        problems.draw_sequence,
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
        problems.draw_boolean,
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
        problems.draw_lookup,
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
        problems.draw_dates,
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
"""Every category by name; public, so that users can read, and a test can invert, every surface form."""

CATEGORIES: tuple[str, ...] = tuple(TABLE)

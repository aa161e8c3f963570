import re
from collections import Counter
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting.heat import STEPS, cells_of, group_order, similarity_map, step_of, time_map
from devft_jax.reporting.svg import beside


def drawn_cells(parts, left, top, width, height):
    """The shade of every cell that the paths cover, and how often."""
    shades, times = {}, Counter()
    for part in parts:
        step = int(re.search(r'class="h(\d)"', part)[1])
        for x, y, end in re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)v", part):
            row, first, last = (float(y) - top) / height, (float(x) - left) / width, (float(end) - left) / width
            for column in range(round(first), round(last)):
                shades[round(row), column] = step
                times[round(row), column] += 1
    return shades, times


@given(st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 9)), st.floats(0, 1), min_size=1))
def test_every_cell_is_drawn_once_in_its_shade(values):
    shades, times = drawn_cells(cells_of(values, 0, 1, 10, 20, 8, 4), 10, 20, 8, 4)
    assert shades == {place: step_of(value, 0, 1) for place, value in values.items()}
    assert set(times.values()) == {1}


@given(st.floats(-1, 1), st.floats(-1, 1), st.floats(0, 1))
def test_shades_rise_with_values_over_the_whole_range(one, other, share):
    low, high = sorted((one, other))
    steps = [step_of(low + part * (high - low), low, high) for part in (0.0, share, 1.0)]
    assert steps == sorted(steps)
    assert steps[0] == 0
    assert steps[2] == (STEPS - 1 if high > low else 0)


def test_groups_are_named_on_the_diagonal_and_enclosed():
    matrix = np.full((4, 4), 0.05)
    matrix[0, 1] = matrix[1, 0] = 0.02
    picture = similarity_map("a", matrix.tolist(), [0, 1, 1, -1], (0.02, 0.05))
    tree = ElementTree.fromstring(picture.inline())
    texts = [text.text for text in tree.iter("text")]
    # The group of layer 0, and layer 1 on two axes.
    assert texts.count("1") == 3
    assert "\u2013" in texts
    assert "0.02" in texts
    assert "0.05" in texts
    border = next(path for path in tree.iter("path") if path.get("class") == "border").get("d")
    # Around one cell, and around two by two; the absent layer is in no group.
    assert border == "M44 58h26v26h-26zM70 84h52v52h-52z"


def test_scattered_groups_are_one_square_each_and_every_layer_keeps_its_values():
    """Thirty layers in interleaved groups: outlines of their cells where they lie would be a plaid."""
    assign = [layer % 3 for layer in range(30)]
    matrix = [[row + column / 100 for column in range(30)] for row in range(30)]
    tree = ElementTree.fromstring(similarity_map("a", matrix, assign, (0.0, 29.3)).inline())
    border = next(path for path in tree.iter("path") if path.get("class") == "border").get("d")
    assert border.count("z") == 3
    rows = [
        int(text.text)
        for text in tree.iter("text")
        if text.get("class") == "small soft" and text.get("text-anchor") == "end"
    ]
    assert rows == [*range(0, 30, 3), *range(1, 30, 3), *range(2, 30, 3)]
    assert group_order([1, 0, -1, 0]) == [1, 3, 0, 2]


@pytest.mark.parametrize("apart", [True, False])
def test_a_map_over_rounds_stays_inside_its_picture(apart):
    values = {(row, column): 1.0 for row in range(60) for column in range(120)}
    picture = time_map(
        "a", values, ["<x>"] * 60, 120, (0.0, 1.0), rounds=300, borders=[75], label="b", row_label="c", apart=apart
    )
    tree = ElementTree.fromstring(picture.document())
    assert len(tree.findall(".//{*}path[@class='border']")) == 1
    width, height = picture.width, picture.height
    for text in tree.findall(".//{*}text[@x]"):
        assert 0 <= float(text.get("x")) < width
        assert 0 < float(text.get("y")) < height
    for rect in tree.findall(".//{*}rect"):
        assert float(rect.get("x", 0)) + float(rect.get("width")) <= width
        assert float(rect.get("y", 0)) + float(rect.get("height")) <= height


def test_a_map_outside_a_report_has_its_shades():
    matrix = [[1.0, 0.2], [0.2, 1.0]]
    rounds = {"rounds": 1, "borders": [], "label": "seconds", "row_label": "client"}
    layers = similarity_map("Layers", matrix, [-1, -1], (0.0, 1.0))
    times = time_map("Rounds", {(0, 0): 1.0}, ["a"], 1, (0.0, 1.0), **rounds)
    for picture in (layers, times, beside("Both", [layers, times])):
        document = picture.document()
        shades = re.findall(r'class="(h\d+)"', document)
        assert shades
        assert all(f".{shade} {{" in document for shade in shades)

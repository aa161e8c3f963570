from xml.etree import ElementTree

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting.story import Stage
from devft_jax.reporting.strip import LEFT, ROOM, group_name, layer_strip
from tests import run_records
from tests.reporting.stories import stage_record


@given(st.integers(1, 40), st.integers(0, 99), st.booleans())
def test_every_layer_stands_once_in_every_row_and_boxes_hold_their_groups(depth, seed, absent):
    generator = np.random.default_rng(seed)
    depths = sorted({max(1, depth // 4), max(1, depth // 2), depth})
    records = [stage_record(depth, layers, generator) for layers in depths]
    if absent and depths[0] < depth:
        records[0].assign[-1] = -1
    stages = [Stage(index + 1, record, [], 0) for index, record in enumerate(records)]
    tree = ElementTree.fromstring(layer_strip("a", stages).inline())
    slivers = [rect for rect in tree.iter("rect") if rect.get("class") is None]
    boxes = [rect for rect in tree.iter("rect") if rect.get("class") == "outline"]
    width = ROOM / depth
    rows = sorted({float(rect.get("y")) for rect in slivers})
    assert len(rows) == len(stages)
    for y, stage in zip(rows, stages, strict=True):
        places = sorted(float(rect.get("x")) for rect in slivers if float(rect.get("y")) == y)
        np.testing.assert_allclose(places, [LEFT + index * width for index in range(depth)], atol=0.06)
        colours = {rect.get("fill") for rect in slivers if float(rect.get("y")) == y}
        assert len(colours) == depth
        sizes = [float(rect.get("width")) + 1.4 for rect in boxes if float(rect.get("y")) == y]
        np.testing.assert_allclose(sizes, [len(group) * width for group in stage.groups if group], atol=0.11)


@given(st.integers(1, 128), st.integers(0, 99))
def test_how_many_layers_a_stage_has_and_lacks_stands_inside_the_picture(depth, seed):
    here = np.random.default_rng(seed).random(depth) < 0.5
    assign = np.where(here, np.cumsum(here) - 1, -1).tolist()
    layers = int(sum(here))
    record = run_records.stage_record(layers=layers, assign=assign, group_sizes=[1] * layers, anchor_coefficients=None)
    tree = ElementTree.fromstring(layer_strip("a", [Stage(1, record, [], 0)]).inline())
    [name] = [text for text in tree.iter("text") if text.text.startswith(f"{sum(here)} layers")]
    absent = depth - sum(here)
    assert name.text == f"{sum(here)} layers" + (f", {absent} absent" if absent else "")
    # Its end is anchored; a letter of a note takes at most seven units.
    assert name.get("text-anchor") == "end"
    assert float(name.get("x")) - 7 * len(name.text) >= 0


def test_groups_are_named_as_runs():
    assert group_name([0, 1, 2, 5, 7, 8]) == "0\u20132, 5, 7\u20138"

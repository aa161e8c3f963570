"""What a stage says of itself."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting import Progress
from devft_jax.reporting.progress import fill, shown_groups, shown_layers, shown_weights
from tests.run_records import stage_record


def record(assign, **changes):
    """A stage's record, as the trainer writes it, of layers in groups; -1 is in none."""
    depth = max(assign) + 1
    sizes = [assign.count(group) for group in range(depth)]
    written = {"layers": depth, "assign": assign, "group_sizes": sizes, "loss_start": 3.5, "loss_end": 3.25}
    written |= {"anchor_coefficients": [1 - 0.1 * (size - 1) for size in sizes], "loss_full_after_transfer": 3.0}
    return stage_record(**(written | changes))


def said(what, *arguments):
    stream = io.StringIO()
    getattr(Progress(stream), what)(*arguments)
    return stream.getvalue()


ONE_LARGE = [0, 1, 2, *[0] * 7, 3, *[0] * 5]


def test_a_fused_stage_tells_its_layers_weight_and_losses():
    assert said("stage", 1, 4, record(ONE_LARGE), 2.75) == (
        "stage 2/4  4 layers <- 16:  [0 3-9 11-15] [1] [2] [10]\n"
        "  anchor's weight -0.20;  held-out loss 2.7500 with all 16 layers -> 3.5000 in the submodel\n"
    )
    assert said("stage_end", record(ONE_LARGE)) == (
        "  end of stage: held-out loss 3.2500 in the submodel -> 3.0000 with all 16 layers after transfer\n"
    )


def test_a_stage_of_all_layers_has_one_loss():
    whole = record(list(range(16)), anchor_coefficients=None)
    assert said("stage", 3, 4, whole, 3.5) == "stage 4/4  all 16 layers;  held-out loss 3.5000\n"
    assert said("stage_end", whole) == "  end of stage: held-out loss 3.2500\n"


def test_a_stage_of_which_a_part_learns_says_which():
    top = record(list(range(8)), anchor_coefficients=None, trained=[6, 7])
    assert said("stage", 0, 2, top, 3.5) == "stage 1/2  all 8 layers, of which 6-7 learn;  held-out loss 3.5000\n"
    warm = record([0, 1, 2, 3, -1, -1], trained=[2, 3], loss_start=None)
    assert said("stage", 0, 2, warm, None) == (
        "stage 1/2  4 layers <- 6:  [0]..[3] absent: 4-5\n  only the submodel's layers 2-3 learn\n"
    )


def test_without_held_out_data_only_layers_are_told():
    blind = record(ONE_LARGE, loss_start=None, loss_end=None)
    text = said("stage", 1, 4, blind, None)
    assert text == "stage 2/4  4 layers <- 16:  [0 3-9 11-15] [1] [2] [10]\n  anchor's weight -0.20\n"
    assert said("stage_end", blind) == ""


@pytest.mark.parametrize(
    ("assign", "shown"),
    [
        ([0, *range(1, 16), *[0] * 16], "[0 16-31] [1]..[15]"),
        ([layer // 2 for layer in range(80)], "[0-1]..[78-79]"),
        ([layer % 2 for layer in range(6)], "[0 2 4] [1 3 5]"),
        ([0, 1, 2, 2], "[0] [1] [2-3]"),
        ([0, 1, 2, 3, 3], "[0] [1] [2] [3-4]"),
        ([0, 1, 2, 3, 4, 4], "[0]..[3] [4-5]"),
        ([0, -1, -1, 1], "[0] [3] absent: 1-2"),
    ],
)
def test_groups_are_short_however_many_layers(assign, shown):
    assert " ".join(shown_groups(record(assign).groups, assign)) == shown


def test_rows_that_no_layer_is_assigned_to_are_empty_brackets():
    assert shown_groups([[0, 1], [], [], [2]], [0, 0, 3]) == ["[0-1]", "[]", "[]", "[2]"]
    assert shown_groups([[], []], [-1, -1]) == ["[]", "[]", "absent: 0-1"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=48))
def test_every_layer_is_told_once_in_its_group(labels):
    order = list(dict.fromkeys(labels))
    assign = [order.index(label) for label in labels]
    groups = record(assign).groups
    read = []
    for text in shown_groups(groups, assign):
        named = [[layer for part in group.split() for layer in span(part)] for group in re.findall(r"\[([^]]*)\]", text)]
        if ".." in text:
            (first, *_), size = named[0], len(named[0])
            named = [list(range(start, start + size)) for start in range(first, named[1][-1] + 1, size)]
        read += named
    assert read == groups


def span(part):
    first, _, last = part.partition("-")
    return range(int(first), int(last or first) + 1)


def test_layers_are_ranges():
    assert shown_layers([0, 3, 4, 5, 7]) == "0 3-5 7"


@pytest.mark.parametrize(
    ("sizes", "weights", "shown"),
    [
        ([1, 1], [1.0, 1.0], ""),
        ([13, 1], [-0.2, 1.0], "anchor's weight -0.20"),
        ([2, 2, 4, 1], [0.9, 0.9, 0.7, 1.0], "anchors' weights 0.90 x 2, 0.70"),
    ],
)
def test_equal_weights_are_counted(sizes, weights, shown):
    assert shown_weights([range(size) for size in sizes], weights) == shown


def test_long_lines_are_folded_between_groups():
    words = ["stage 1/2  6 layers <- 60:", *(f"[{index} {index + 30}]" for index in range(10, 16))]
    text = fill(words, 40, indent=4)
    assert all(len(line) <= 40 for line in text.splitlines())
    assert text.split() == " ".join(words).split()
    assert text.splitlines()[1].startswith("    [")


class Gone(io.StringIO):
    """A stream whose reader has gone, or whose disk is full."""

    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")


def test_a_stream_that_takes_no_more_is_no_reason_to_fail():
    progress = Progress(Gone())
    progress.say("one")
    progress.warn("two")
    assert progress.lost == "Broken pipe"


def test_what_a_terminal_cannot_show_is_replaced():
    raw = io.BytesIO()
    progress = Progress(io.TextIOWrapper(raw, encoding="ascii"))
    progress.say("client 'Zoë'")
    assert raw.getvalue() == b"client 'Zo\\xeb'\n"
    assert progress.lost is None

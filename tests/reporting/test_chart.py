from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devft_jax.reporting.chart import (
    Band,
    Frame,
    Level,
    Line,
    Mark,
    Spot,
    legend,
    line_chart,
    plot_lines,
    plot_spots,
)
from devft_jax.reporting.ticks import decades, ticks

POINTS = st.lists(st.tuples(st.floats(0, 1e9, allow_nan=False), st.floats(-50, 50, allow_nan=False)), min_size=1, max_size=6)


@given(st.lists(POINTS, min_size=1, max_size=5))
def test_every_point_is_drawn_inside_a_well_formed_picture(series):
    lines = [Line(f"<line {index}>", points) for index, points in enumerate(series)]
    picture = ElementTree.fromstring(line_chart("a & b", "x", "y", lines))
    polylines = picture.findall(".//{*}polyline")
    assert [len(line.get("points").split()) for line in polylines] == [len(points) for points in series]
    for line in polylines:
        for pair in line.get("points").split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= 760
            assert 0 <= y <= 420
    texts = [text.text for text in picture.findall(".//{*}text")]
    assert "<line 0>" in texts


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(-9, 9)), min_size=1, max_size=6),
    st.lists(st.integers(-20, 20), min_size=1, max_size=5),
)
def test_levels_cross_the_chart_and_every_name_is_inside_and_apart(points, heights):
    levels = [Level(f"level {index}", y) for index, y in enumerate(heights)]
    picture = ElementTree.fromstring(line_chart("a", "x", "y", [Line("line", points)], levels=levels))
    drawn = [path.get("d") for path in picture.findall(".//{*}path[@class='axis level']")]
    assert len(drawn) == len(levels)
    names = {text.text: float(text.get("y", 0)) for text in picture.findall(".//{*}text")}
    placed = sorted(y for name, y in names.items() if name == "line" or name.startswith("level"))
    assert len(placed) == len(levels) + 1
    assert all(0 < y < 420 for y in placed)
    assert all(after - before > 16 for before, after in pairwise(placed))
    for level, path in zip(levels, drawn, strict=True):
        start = float(path.removeprefix("M64 ").split("H")[0])
        assert 48 - 0.1 <= start <= 364 + 0.1, level


def test_levels_are_named_where_a_legend_names_the_lines():
    frame = Frame(width=480, height=340, named=False, levels=[Level("<one>", 1.0), Level("two", 1.001), Level("three", 2.0)])
    picture = ElementTree.fromstring(plot_lines("t", "x", "y", [Line("a", [(0, 1), (1, 2)])], frame).document())
    named = {text.text: float(text.get("y")) for text in picture.findall(".//{*}text") if text.get("class") == "note soft"}
    assert set(named) == {"<one>", "two", "three"}
    assert all(after - before > 16 for before, after in pairwise(sorted(named.values())))
    assert all(0 < y < 340 - 56 for y in named.values())


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.2, 4.9), (-1e-3, 1e-3), (0, 2.7e8), (5, 5)])
def test_ticks_span_the_values_with_few_round_steps(low, high):
    values = ticks(low, high)
    assert values[0] <= low
    assert values[-1] >= high
    assert 2 <= len(values) <= 8


@given(POINTS, st.integers(2, 6))
def test_bands_and_marks_lie_between_the_axes_and_pieces_of_a_line_look_alike(points, count):
    edges = [index * 10.0 for index in range(count)]
    bands = [Band(start, end, ("a long name of a band", "x")) for start, end in pairwise(edges)]
    inside = [(x % edges[-1], y) for x, y in points]
    frame = Frame(width=340, height=260, named=False, bands=bands, marks=[Mark(5.0, "<why>")])
    lines = [Line("a", inside), Line("b", inside, markers=False), Line("a", inside)]
    picture = ElementTree.fromstring(plot_lines("t", "x", "y", lines, frame).document())
    drawn = picture.findall(".//{*}rect[@class='band']")
    assert len(drawn) == count - 1
    for rect in drawn:
        assert 0 <= float(rect.get("x")) <= float(rect.get("x")) + float(rect.get("width")) <= 340 - 17
    assert picture.find(".//{*}g[@class='resume']/{*}title").text == "<why>"
    looks = [(line.get("stroke"), line.get("stroke-dasharray")) for line in picture.findall(".//{*}polyline")]
    assert looks[0] == looks[2] != looks[1]
    assert len(picture.findall(".//{*}circle")) == 2 * len(inside)
    assert [name for _, name in legend(lines)] == ["a", "b"]


def test_whole_ticks_are_integers():
    for last in range(1, 40):
        assert all(tick == round(tick) for tick in ticks(0, last, whole=True))


def test_a_picture_within_a_page_has_no_title_of_its_own():
    picture = plot_lines("about this", "x", "y", [Line("a", [(0, 1), (1, 2)])])
    assert ElementTree.fromstring(picture.inline()).get("aria-label") == "about this"
    assert "about this</text>" not in picture.inline()
    assert "about this</text>" in picture.document()


def test_a_line_along_its_least_value_has_nothing_below():
    assert len(ticks(0.0, 5e-324)) >= 2
    picture = plot_lines("title", "x", "y", [Line("zero", [(0.0, 0.0), (1.0, 0.0)])], Frame(low=0.0))
    assert ">-" not in "".join(picture.body)


def test_the_x_axis_includes_a_named_value():
    line = Line("cost", [(40.0, 1.0), (90.0, 2.0)])
    shown = "".join(plot_lines("title", "x", "y", [line], Frame(first=0.0)).body)
    assert ">0</text>" in shown
    assert ">0</text>" not in "".join(plot_lines("title", "x", "y", [line]).body)


def test_sixteen_lines_look_different():
    picture = plot_lines("t", "x", "y", [Line(str(index), [(0, index), (1, index)]) for index in range(16)])
    drawn = ElementTree.fromstring(picture.document()).findall(".//{*}polyline")
    assert len({(line.get("stroke"), line.get("stroke-dasharray")) for line in drawn}) == 16


def test_a_line_keeps_its_look_where_others_are_left_out():
    [alone] = ElementTree.fromstring(
        plot_lines("t", "x", "y", [Line("b", [(0, 1), (1, 2)])], names=["a", "b"]).document()
    ).findall(".//{*}polyline")
    both = plot_lines("t", "x", "y", [Line("a", [(0, 1), (1, 2)]), Line("b", [(0, 1), (1, 2)])])
    second = ElementTree.fromstring(both.document()).findall(".//{*}polyline")[1]
    assert alone.get("stroke") == second.get("stroke")


def test_a_legend_shows_the_looks_that_lines_have_among_all_names():
    lines = [Line("b", [(0, 1), (1, 2)], markers=False), Line("c", [(0, 1)], joined=False)]
    whole = legend([Line(name, [(0, 0)]) for name in "abc"])
    some = legend(lines, ["a", "b", "c"])
    assert [name for _, name in some] == ["b", "c"]
    assert [picture.body for picture, _ in some] == [whole[1][0].body[:1], whole[2][0].body[1:]]


def test_intervals_stand_around_their_points_inside_the_picture():
    picture = plot_lines("t", "x", "y", [Line("a", [(0, 1), (1, 2)], intervals=[None, (1.5, 2.5)])])
    [whisker] = [path for path in ElementTree.fromstring(picture.document()).findall(".//{*}path") if path.get("stroke")]
    upright = whisker.get("d").split("M")[1]
    low, high = (float(part) for part in (upright.split()[1].split("V")[0], upright.split("V")[1]))
    assert 48 <= high < low <= 364


def test_an_interval_far_beyond_the_values_goes_on_beyond_the_picture_without_a_bar():
    picture = plot_lines("t", "x", "y", [Line("a", [(0, 1), (1, 2)], intervals=[(0.9, 1.1), (1e-6, 1e6)])])
    drawn = ElementTree.fromstring(picture.document())
    bars = [path.get("d").count("h8") for path in drawn.findall(".//{*}path[@stroke]")]
    assert bars == [2, 1]
    places = [float(pair.split(",")[1]) for pair in drawn.find(".//{*}polyline").get("points").split()]
    assert places[0] - places[1] > 80


def test_points_that_are_not_joined_have_markers_and_no_line():
    pieces = [Line("a", [(0, 1), (1, 2)]), Line("a", [(0.5, 1.7)], joined=False), Line("b", [(0, 3), (1, 4)], joined=False)]
    drawn = ElementTree.fromstring(plot_lines("t", "x", "y", pieces).document())
    assert len(drawn.findall(".//{*}polyline")) == 1
    assert len(drawn.findall(".//{*}circle")) == 3
    looks = [len(look.body) for look, _ in legend(pieces)]
    assert looks == [2, 1]


def test_on_a_logarithmic_axis_equal_factors_are_equally_high():
    lines = [Line("a", [(0, 2), (1, 4), (2, 8)])]
    drawn = ElementTree.fromstring(plot_lines("t", "x", "y", lines, Frame(logarithm=True)).document())
    first, second, third = (float(pair.split(",")[1]) for pair in drawn.find(".//{*}polyline").get("points").split())
    assert first - second == pytest.approx(second - third, abs=0.2)


@given(st.floats(1e-9, 1e9), st.floats(1.0, 1e9))
def test_decades_span_the_values_with_few_round_steps(low, factor):
    values = decades(low, low * factor)
    assert values[0] <= low * (1 + 1e-8)
    assert values[-1] >= low * factor * (1 - 1e-8)
    assert 2 <= len(values) <= 20


def interval(centre):
    return st.one_of(st.none(), st.floats(0, 3).map(lambda reach: (centre - reach, centre + 2 * reach)))


SPOTS = st.lists(
    st.tuples(st.floats(0, 1e6), st.floats(-9, 9)).flatmap(
        lambda place: st.builds(
            Spot, st.sampled_from("abcdef"), *map(st.just, place), interval(place[0]), interval(place[1])
        )
    ),
    min_size=1,
    max_size=8,
)


@given(SPOTS)
def test_spots_and_their_intervals_lie_inside_and_are_named(spots):
    front = [(spots[0].x, spots[0].y)]
    picture = ElementTree.fromstring(plot_spots("<t>", "x", "y", spots, front=front).document())
    assert [title.text for title in picture.findall(".//{*}g/{*}title")] == sorted(
        (spot.name for spot in spots), key=list(dict.fromkeys(spot.name for spot in spots)).index
    )
    for circle in picture.findall(".//{*}circle"):
        assert 64 - 0.1 <= float(circle.get("cx")) <= 480 - 17.9
        assert 48 - 0.1 <= float(circle.get("cy")) <= 340 - 55.9
    assert picture.find(".//{*}path[@class='aside front']").get("d").startswith("M")

"""The picture of a split: every cell, bar and count is where and what it should be, from 1 client to thousands."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.reporting.split import MAX_CLIENTS, MAX_GROUPS, STEPS, split_chart
from devft_jax.storage.split_record import ClientRecord, SplitRecord


def split_of(counts, *, without=0, kind="category", names=None):
    """A record of these counts [C, G], and `without` examples without group for each client."""
    counts = np.asarray(counts)
    names = names or [f"group {index}" for index in range(counts.shape[1])]
    sizes = counts.sum(axis=1) + without

    def by_name(row):
        return {name: int(count) for name, count in zip(names, row, strict=True) if count}

    clients = [
        ClientRecord(name=f"client-{index}", id=index, examples=int(size), tokens=10 * int(size), groups=by_name(row))
        for index, (row, size) in enumerate(zip(counts, sizes, strict=True))
    ]
    return SplitRecord(
        partition="dirichlet",
        template="alpaca",
        examples=int(sizes.sum()),
        tokens=10 * int(sizes.sum()),
        grouped_by=kind if names else None,
        groups=by_name(counts.sum(axis=0)),
        clients=clients,
    )


def drawn(split):
    return ElementTree.fromstring(split_chart(split))


def texts(picture):
    return [text.text for text in picture.findall("{*}text")]


def tips(picture):
    """What the tooltips of the cells say, as (row, column, count)."""
    found = [title.text for title in picture.findall(".//{*}title")]
    matches = [re.fullmatch(r"(.*?), (.*): ([\d,]+) \(.*%\)", text) for text in found]
    return [(match[1], match[2], int(match[3].replace(",", ""))) for match in matches]


@settings(max_examples=60)
@given(st.integers(1, 130), st.integers(0, 40), st.integers(0, 2), st.integers(0, 2**32), st.sampled_from([3, 40, 200_000]))
def test_all_examples_are_drawn_inside_the_picture(clients, groups, without, seed, most):
    stream = np.random.default_rng(seed)
    counts = stream.integers(0, most, (clients, groups)) * stream.integers(0, 2, (clients, groups))
    split = split_of(counts, without=max(without, int(groups == 0)))
    if not split.examples:
        return
    picture = drawn(split)
    width, height = map(float, picture.get("viewBox").split()[2:])
    for rect in picture.findall("{*}rect"):
        x, y = float(rect.get("x", 0)), float(rect.get("y", 0))
        assert 0 <= x <= x + float(rect.get("width")) <= width
        assert 0 <= y <= y + float(rect.get("height")) <= height
    for text in picture.findall("{*}text[@x]"):
        assert 0 <= float(text.get("x")) < width
        assert 0 < float(text.get("y")) < height
    if split.grouped_by:
        cells = tips(picture)
        everything = [count for row, _, count in cells if row == f"all {clients}"]
        assert sum(everything) == split.examples
        for client in split.clients[:MAX_CLIENTS]:
            assert sum(count for row, _, count in cells if row == client.name) == client.examples
    bars = picture.findall("{*}rect[@class='bar']")
    assert len(bars) == min(clients, MAX_CLIENTS)
    assert any(f"the first {MAX_CLIENTS} of {clients} clients are drawn" in text for text in texts(picture)) == (
        clients > MAX_CLIENTS
    )


def test_cells_are_shaded_by_share_and_numbered():
    picture = drawn(split_of([[2, 8, 20, 45, 125], [0, 0, 0, 7, 0]]))
    shades = [rect.get("class") for rect in picture.findall("{*}rect[{*}title]")]
    assert shades[:6] == ["s1", "s2", "s2", "s3", "s5", "s5"]
    assert tips(picture)[:2] == [("client-0", "group 0", 2), ("client-0", "group 1", 8)]
    counts = [text.text for text in picture.findall("{*}text") if (text.get("class") or "").startswith("count")]
    assert counts[:6] == ["2", "8", "20", "45", "125", "7"]
    assert "shade: share of a client's examples by category; number: examples" in texts(picture)
    assert "50-100%" in texts(picture)
    assert "examples per client: 7 to 200, median 104" in texts(picture)


def test_every_share_has_a_shade():
    assert STEPS[-1] == 1
    assert list(STEPS) == sorted(STEPS)


def test_bars_are_as_long_as_clients_are_large():
    picture = drawn(split_of([[30], [15], [60]]))
    lengths = [float(bar.get("width")) for bar in picture.findall("{*}rect[@class='bar']")]
    assert lengths[0] == pytest.approx(2 * lengths[1], abs=0.2)
    assert lengths[2] == pytest.approx(2 * lengths[0], abs=0.2)


def test_rare_groups_are_summed_up_as_others_in_the_given_order():
    counts = np.ones((2, 30), int)
    counts[:, 29] = 50
    shown = list(dict.fromkeys(column for _, column, _ in tips(drawn(split_of(counts, without=1)))))
    assert shown == [*[f"group {index}" for index in range(MAX_GROUPS - 2)], "group 29", "7 others", "none"]
    just_fit = tips(drawn(split_of(counts[:, -MAX_GROUPS:])))
    assert len({column for _, column, _ in just_fit}) == MAX_GROUPS


def test_without_groups_there_are_sizes_only():
    picture = drawn(split_of(np.zeros((3, 0)), without=4))
    assert not picture.findall(".//{*}title")
    assert "examples of each client" in texts(picture)
    assert texts(picture).count("4") == 3
    assert not any("%" in text for text in texts(picture))


def test_long_and_odd_names_are_shortened_and_escaped():
    split = split_of([[3]], names=["<a & b> " + "x" * 40])
    split.clients[0].name = "client with a very long\x07 name"
    written = texts(drawn(split))
    assert "<a & b> " + "x" * 7 + "…" + "x" * 14 in written
    assert "client with…long\\x07 name" in written


def test_the_picture_is_self_contained():
    svg = split_chart(split_of([[3, 4]], kind="topic"))
    assert "prefers-color-scheme: dark" in svg
    assert "by topic" in svg
    assert "href" not in svg
    assert "<script" not in svg


def test_one_client_is_not_called_a_split():
    label = drawn(split_of([[3, 4]])).get("aria-label")
    assert label == "7 examples of one client"

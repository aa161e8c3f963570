"""The report of a run's folder: well formed and self-contained whatever the run, honest about what is known."""

import contextlib
import copy
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.commands.cli import run_command
from devft_jax.errors import InputError
from devft_jax.federated.options import LearningRateOptions, learning_rate_at
from devft_jax.reporting import page
from devft_jax.reporting.curves import training_losses
from devft_jax.reporting.report import report_html
from devft_jax.reporting.report_file import read_settings, read_story, write_report
from devft_jax.reporting.stages import bins_of
from devft_jax.reporting.story import Stage
from devft_jax.reporting.svg import COLOURS
from devft_jax.storage.run_folder import RunFolder
from tests.reporting.stories import stage_record, write_story

DASH, MINUS, TIMES = "\u2013", "\u2212", "\u00d7"


def page_of(folder):
    story = read_story(folder)
    return report_html(story, read_settings(story.config))


def tree_of(html):
    assert html.startswith("<!DOCTYPE html>\n")
    return ElementTree.fromstring(html.split("\n", 1)[1])


def text_of(html):
    return " ".join(" ".join(tree_of(html).find("body").itertext()).split())


def check_page(html):
    """What holds of every report: well formed, nothing loaded, no script, and readable without eyes or colour."""
    tree = tree_of(html)
    assert tree.find(".//{*}script") is None
    links = [element.get(name) for element in tree.iter() for name in ("href", "src", "data") if element.get(name)]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html
    named = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(set(named)) == len(named)
    assert {link[1:] for link in links} <= set(named)
    for svg in tree.iter("svg"):
        assert svg.get("aria-hidden") == "true" or (svg.get("role") == "img" and svg.get("aria-label"))
        width, height = map(float, svg.get("viewBox").split()[2:])
        assert width > 0
        assert height > 0
        for element in svg.iter():
            for name in ("d", "points", "x", "y", "width", "height", "cx", "cy"):
                assert not re.search("nan|inf|e", element.get(name, ""))
    for table in tree.iter("table"):
        assert table.find("caption").text
        columns = len(table.findall("thead/tr/th"))
        assert {len(list(row)) for row in table.findall("tbody/tr")} == {columns}
    assert next(element.tag for element in tree.iter() if re.fullmatch("h[1-6]", element.tag)) == "h1"
    return tree


@settings(max_examples=12)
@given(
    depth=st.integers(1, 24),
    stages=st.integers(1, 4),
    rounds=st.integers(1, 30),
    more=st.sampled_from([0, 0, 5]),
    clients=st.sampled_from([1, 3, 70]),
    held_out=st.booleans(),
    evaluate_every=st.sampled_from([0, 1, 4]),
    seed=st.integers(0, 99),
)
def test_every_run_has_a_page(tmp_path_factory, depth, stages, rounds, more, clients, held_out, evaluate_every, seed):
    depths = tuple(sorted({max(1, depth * part // stages) for part in range(1, stages + 1)}))
    folder = write_story(
        tmp_path_factory.mktemp("run"),
        depth=depth,
        depths=depths[: rounds + more],
        rounds=rounds,
        planned=rounds + more,
        clients=clients,
        held_out=held_out,
        evaluate_every=evaluate_every,
        resumed=[rounds // 2] if seed % 2 else [],
        seed=seed,
        clients_per_round=min(2, clients),
    )
    html = page_of(folder)
    check_page(html)
    words = text_of(html)
    assert ("was not measured" in words or "not measured" in words) == (not held_out)
    assert (f"after round {rounds} of {rounds + more}" in words) == bool(more)
    assert (f"finished: {rounds} round" in words) == (not more)


def test_the_headline_tells_what_was_run_and_what_came_of_it(tmp_path):
    folder = write_story(tmp_path / "my run")
    words = text_of(page_of(folder))
    record = json.loads((folder / "summary.json").read_text())
    assert f"Held-out loss fell from 5.5000 to {record['final_loss']:.4f}" in words
    assert "exact match rose from 0.0% to 25.0%" in words
    assert "Report of the run in my run/" in words
    assert "in 4 stages of 1, 2, 4, 8 layers over 12 rounds with 2 of 5 clients a round" in words
    assert "besides: compile 2.00 s, build 1.00 s, evaluate 3.00 s; compiled in the background: 4.00 s" in words
    assert "1.00 GB process peak resident set" in words


def test_energy_is_told_where_the_summary_has_it(tmp_path):
    folder = write_story(tmp_path)
    assert " kg/kWh; source" not in text_of(page_of(folder))
    record = json.loads((folder / "summary.json").read_text())
    energy = {"kwh": 0.0123, "kgco2e": 0.005, "grid_kgco2e_per_kwh": 0.4, "source": "estimate from FLOPs"}
    (folder / "summary.json").write_text(json.dumps({**record, "energy": energy}))
    assert "Energy 12.3 Wh 5 g CO2e at 0.4 kg/kWh; source: estimate from FLOPs" in text_of(page_of(folder))


def test_clients_own_models_are_told_as_a_mean_and_one_by_one(tmp_path):
    folder = write_story(tmp_path, clients=3, rounds=4, depths=(8,))
    assert "own models" not in text_of(page_of(folder))
    losses = {"losses": [1.25, 2.5, 3.75], "accuracies": [0.5, 0.25, 0.125]}
    spread = {"loss_spread": 1.0206, "accuracy_spread": 0.1559}
    edit(folder, "summary.json", personal_models=True, personal={"loss": 2.5, "accuracy": 0.29, **losses, **spread})
    html = page_of(folder)
    words = text_of(html)
    assert "On average over the clients' own models, held-out loss fell from 5.5000" in words
    assert "mean of 3 clients' own models, standard deviation 1.021" in words
    assert "the mean over the round's participants" in words
    table = next(item for item in check_page(html).iter("table") if item.find("caption").text.startswith("Clients"))
    rows = [[cell.text for cell in row] for row in table.findall("tbody/tr")]
    assert [(row[0], *row[-2:]) for row in rows] == [
        ("client-0", "1.25", "0.5"),
        ("client-1", "2.5", "0.25"),
        ("client-2", "3.75", "0.125"),
    ]


def test_a_run_of_personal_models_under_way_claims_no_global_model(tmp_path):
    folder = write_story(tmp_path, clients=3, rounds=6, planned=9, depths=(8,))
    edit(folder, "record.json", personal=None, personal_models=True)
    words = text_of(page_of(folder))
    assert "On average over the clients' own models, held-out loss fell from 5.5000" in words
    assert "40 held-out examples, mean of the clients' own models" in words
    assert "40 held-out examples, full model" not in words
    assert "Held-out figures are means over all clients' own models" in words
    assert "the mean over the round's participants" in words


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["base_loss", "loss_start", "loss_end", "loss_full_after_transfer", "held_out_loss", "loss"]
)
def test_a_run_that_diverged_has_a_page(tmp_path, name, value):
    folder = write_story(tmp_path, depths=(2, 8), rounds=8)
    record = json.loads((folder / "summary.json").read_text())
    for place in (record, *record["stages"]):
        place.update({name: value} if name in place else {})
    (folder / "summary.json").write_text(json.dumps(record))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**line, **({name: value} if name in line else {})}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    html = page_of(folder)
    check_page(html)
    if name == "loss_full_after_transfer":
        assert f"Held-out loss went from 5.5000 to {value:.4f}" in text_of(html)


def test_a_row_that_no_layer_is_assigned_to_has_no_anchor(tmp_path):
    folder = write_story(tmp_path, depth=8, depths=(2, 8), rounds=4)
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    stages[0] |= {"assign": [0] * 8, "group_sizes": [8, 0], "anchor_coefficients": [0.3, None]}
    edit(folder, "summary.json", stages=stages)
    words = text_of(page_of(folder))
    check_page(page_of(folder))
    assert f"stage 1, group 2 0 {DASH}" in words


def test_a_growth_that_ends_early_and_one_stage_are_counted_as_they_are(tmp_path):
    folder = write_story(tmp_path, depths=(4,), rounds=1)
    edit(folder, "summary.json", stage_rounds=[1, 5])
    words = text_of(page_of(folder))
    assert "finished: 1 round The" in words
    assert "tuned in one stage of 4 layers over 1 round with" in words


def test_without_held_out_data_no_evaluation_is_claimed(tmp_path):
    words = text_of(page_of(write_story(tmp_path, held_out=False)))
    assert "not measured. The training loss went from 4.0000" in words
    assert "the two may belong to different models" in words
    assert "evaluated" not in words[: words.index("How the model grew Each")]


def test_stages_of_one_round_show_their_training_loss(tmp_path):
    story = read_story(write_story(tmp_path, depths=(2, 8), rounds=5, planned=5))
    assert [line.markers for line in training_losses(story, story.axes[0])] == [False, False]
    story = read_story(write_story(tmp_path, depths=(2, 8), rounds=2))
    assert [line.markers for line in training_losses(story, story.axes[0])] == [True, True]


def test_several_data_sets_are_named_without_brackets(tmp_path):
    assert "on a.json,b.json (" in text_of(page_of(write_story(tmp_path, data=("a.json", "b.json"))))


def test_a_lengthened_run_is_not_said_to_be_repeated_by_its_command(tmp_path):
    folder = write_story(tmp_path, resumed=[9])
    assert "planned for fewer rounds" not in text_of(page_of(folder))
    edit(folder, "summary.json", lengthened_after=9)
    assert "planned for fewer rounds and lengthened after round 9" in text_of(page_of(folder))


def test_pooled_training_has_no_messages_and_one_client(tmp_path):
    folder = write_story(tmp_path, clients=1, rounds=4, depths=(8,))
    assert "messages up and down" in text_of(page_of(folder))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    silent = [json.dumps({**line, "bytes_up": 0, "bytes_down": 0}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(silent) + "\n")
    words = text_of(page_of(folder))
    assert "over 4 rounds by one client that holds all data, on" in words
    assert "messages up and down" not in words


NASTY = "<script>alert({})</script>&\"'\x07\ud800{}"


def test_what_comes_from_data_is_text(tmp_path):
    folder = write_story(tmp_path, names="<script>{}</script>", model="<img src=x>", data="</style><b>", clients=70)
    split = json.loads((folder / "split.json").read_text())
    split["clients"][0]["name"] = NASTY
    split["clients"][1]["groups"] = {"</svg><script>": 4}
    split["groups"]["</svg><script>"] = 4
    (folder / "split.json").write_text(json.dumps(split))
    objects = {"growth": "<iframe>", "algorithm": "</pre>"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "objects": objects}))
    html = write_report(folder).read_text(encoding="utf-8")
    tree = check_page(html)
    assert tree.find(".//{*}img") is None
    assert tree.find(".//{*}iframe") is None
    assert "<script>69</script>" in text_of(html)
    assert "<iframe> with </pre> on <img src=x>" in tree.find(".//h1").text


def test_the_full_model_is_known_at_the_borders_only(tmp_path):
    story = read_story(write_story(tmp_path, depth=8, depths=(2, 8), rounds=8, evaluate_every=1))
    [full] = story.full_model
    assert [point.round for point in full] == [0, 4, 5, 6, 7, 8]
    [submodel] = story.submodels
    assert [point.round for point in submodel] == [0, 1, 2, 3, 4]
    assert submodel[-1].loss == story.record.stages[0].loss_end
    assert full[1].loss == story.record.stages[0].loss_full_after_transfer


def test_totals_run_over_all_rounds(tmp_path):
    story = read_story(write_story(tmp_path, depth=8, depths=(2, 8), rounds=8))
    rounds, seconds, messages, operations = story.axes
    assert list(rounds.values) == list(range(9))
    assert seconds.values[-1] == pytest.approx(4 * 0.2 + 4 * 0.8)
    assert (messages.unit, messages.values[4], messages.values[8]) == ("kB", 1.6, 8.0)
    assert (operations.unit, operations.values[8]) == ("GFLOPs", 40.0)


def test_negative_anchors_are_named_and_marked(tmp_path):
    folder = write_story(tmp_path, depth=16, depths=(1, 16), rounds=4)
    words = text_of(page_of(folder))
    assert f"In stage 1 ({MINUS}0.50) a group is so large" in words
    assert "Eq. 5 of the paper says so" in words
    given = text_of(page_of(write_story(tmp_path, depth=16, depths=(1, 16), rounds=4, objects={"growth": "Mine()"})))
    assert f"In stage 1 ({MINUS}0.50) a group's first layer, the anchor, enters with a negative weight" in given
    assert "Eq. 5 of the paper" not in given
    assert f"16 layers in one ▼ anchor weight {MINUS}0.50" in words
    assert f"stage 1, group 1 0{DASH}15 16 -0.5 ▼ negative" in words


def test_costs_are_ratios_to_the_deepest_stage(tmp_path):
    words = text_of(page_of(write_story(tmp_path, depth=8, depths=(2, 8), rounds=8)))
    assert f"0.20 s, 4{TIMES} less" in words
    assert f"3.00 MB, 3{TIMES} less" in words
    assert f"4.00 s instead of 6.40 s (1.6{TIMES} less) of training, 8.00 kB instead of 12.8 kB (1.6{TIMES} less)" in words


def test_what_sends_nothing_saves_no_messages(tmp_path):
    folder = write_story(tmp_path, depth=8, depths=(2, 8), rounds=8)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    silent = [json.dumps({**line, "bytes_up": 0, "bytes_down": 0}) for line in lines]
    (folder / "metrics.jsonl").write_text("\n".join(silent) + "\n")
    assert "of training, no messages and" in text_of(page_of(folder))


def test_a_run_under_way_is_read_without_its_lock_or_a_trace(tmp_path):
    folder = write_story(tmp_path / "run", rounds=7, planned=12, resumed=[3])
    with open(folder / "metrics.jsonl", "a") as lines:
        lines.write('{"round": 8, "sta')
    with RunFolder(folder):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        assert run_command(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
        assert before == {path: path.read_bytes() for path in folder.iterdir()}
    html = (tmp_path / "page.html").read_text()
    words = text_of(html)
    assert "still running or interrupted after round 7 of 12, resumed after round 3" in words
    assert "The last line of metrics.jsonl is incomplete and left out" in words
    assert "at round 6, when the full model was last evaluated" in words
    assert len([group for group in tree_of(html).iter("g") if group.get("class") == "resume"]) == 10


@pytest.mark.parametrize("change", [{"grouping": "random"}, {"objects": {"growth": "MyGrowth"}}, {}], ids=str)
def test_groups_are_said_to_come_from_the_spectrum_only_where_they_do(tmp_path, change):
    words = text_of(page_of(write_story(tmp_path, **change)))
    assert ("Layers are grouped by the eigenvectors of the shaded ones" in words) == (not change)
    assert ("This run's groups are not derived from it" in words) == ("grouping" in change)
    assert ("This run's growth was an object, which may group differently" in words) == ("objects" in change)


def polylines(html, title):
    """The points of every line in the first picture of this title."""
    picture = next(svg for svg in tree_of(html).iter("svg") if svg.get("aria-label") == title)
    return [[tuple(map(float, pair.split(","))) for pair in line.get("points").split()] for line in picture.iter("polyline")]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "cosine-per-stage", "linear-per-stage", "constant"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_the_learning_rate_is_drawn_as_the_schedule_has_it(tmp_path, schedule, warmup):
    options = LearningRateOptions(learning_rate=(1e-3,), schedule=schedule, rate_warmup_rounds=warmup)
    folder = write_story(tmp_path, depth=8, depths=(2, 8), rounds=12)
    rates = [learning_rate_at(options, (6, 6), index // 6, index % 6) for index in range(12)]
    rewrite(folder, lambda row: {**row, "learning_rate": rates[row["round"] - 1]})
    html = page_of(folder)
    check_page(html)
    if (schedule, warmup) == ("constant", 0):
        assert page.heading("Learning rate") in html
        assert "Learning rate It was 0.001 in every round." in text_of(html)
        return
    pieces = polylines(html, "Learning rate against rounds")
    assert [len(piece) for piece in pieces] == [6, 6]
    # Heights are the rates on one scale, 0 at the floor.
    heights = [y for piece in pieces for _, y in piece]
    highest = rates.index(max(rates))
    floor = 240 - 56
    scale = (floor - heights[highest]) / rates[highest]
    assert scale > 0
    assert [(floor - y) / scale for y in heights] == pytest.approx(rates, abs=1.5e-6)


def rewrite(folder, change):
    """Every row of the metrics changed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_a_run_without_recorded_rates_shows_none(tmp_path):
    assert page.heading("Learning rate") not in page_of(write_story(tmp_path))


def test_submodels_that_would_flatten_the_full_model_have_a_panel_of_their_own(tmp_path):
    folder = write_story(tmp_path, depth=8, depths=(2, 8), rounds=8)
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    stages[0] |= {"loss_start": 40.0, "loss_end": 38.0, "loss_full_after_transfer": 2.4}
    stages[1] |= {"loss_start": 2.4, "loss_end": 2.2, "loss_full_after_transfer": 2.2}
    edit(folder, "summary.json", stages=stages, base_loss=2.6, final_loss=2.2)

    def as_far_apart(row):
        loss = 39.0 if row["stage"] == 0 else 2.3
        return {name: loss if name in ("loss", "held_out_loss") else value for name, value in row.items()}

    rewrite(folder, as_far_apart)
    html = page_of(folder)
    check_page(html)
    words = text_of(html)
    assert "Loss of the full model full model, held-out" in words
    assert "Loss of what each stage trains stage's submodel, held-out training, mean over clients" in words
    # A factor of more than five: the submodels' panel is logarithmic, the full model's is not.
    labels = {}
    for svg in tree_of(html).iter("svg"):
        labels.setdefault(svg.get("aria-label"), [text.text for text in svg.iter("text")])
    assert "loss, logarithmic" in labels["Loss of what each stage trains against rounds"]
    assert "loss" in labels["Loss of the full model against rounds"]
    full = [float(text) for text in labels["Loss of the full model against rounds"] if re.fullmatch(r"\d\.\d+", text)]
    assert max(full) < 3


def test_losses_alike_share_a_panel_and_what_is_the_same_looks_the_same(tmp_path):
    folder = write_story(tmp_path, depth=8, depths=(2, 8), rounds=8)
    together = page_of(folder)
    assert "Loss of the full model" not in text_of(together)
    rewrite(folder, lambda row: {**row, "loss": 90.0})
    apart = page_of(folder)

    def colour(html, title):
        picture = next(svg for svg in tree_of(html).iter("svg") if svg.get("aria-label") == title)
        return {element.get(name) for element in picture.iter() for name in ("fill", "stroke")} & set(COLOURS)

    shared, own = colour(together, "Loss against rounds"), colour(apart, "Loss of what each stage trains against rounds")
    assert len(shared) == 3
    assert own == shared - colour(apart, "Loss of the full model against rounds")
    assert len(own) == 2


@pytest.mark.parametrize("growth", ["progfed", "skip-grow"])
def test_layers_that_are_picked_are_not_said_to_be_grouped(tmp_path, growth):
    folder = write_story(tmp_path, depth=30, depths=(15, 30), rounds=8, growth=growth)
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    picked = {"assign": [*range(15), *[-1] * 15], "group_sizes": [1] * 15, "anchor_coefficients": [1.0] * 15}
    stages[0] |= {**picked, "similarity": None, "spectrum": None}
    extra = {"block_influence": [0.1] * 30} if growth == "skip-grow" else {}
    edit(folder, "summary.json", stages=stages, bytes_stage=64, **extra)
    html = page_of(folder)
    check_page(html)
    words = text_of(html)
    for wrong in ("fused", "eigen", "grouped", "anchor", "Eq. 3"):
        assert wrong not in words[: words.index("Configuration and reproduction")], wrong
    assert "lists of a stage's layers: 64 B" in words
    assert "15 layers, 15 absent" in words
    assert ("Block influence of the layers" in html) == (growth == "skip-grow")
    assert {"progfed": "takes the first layers", "skip-grow": "the largest block influence"}[growth] in words


def test_an_anchor_of_weight_zero_is_left_out_and_not_subtracted(tmp_path):
    folder = write_story(tmp_path, depth=16, depths=(1, 16), rounds=4)
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    for weight in (0.0, -0.0, -1e-9, 1e-9):
        stages[0]["anchor_coefficients"] = [weight]
        edit(folder, "summary.json", stages=stages)
        words = text_of(page_of(folder))
        assert "subtracted" not in words
        assert "negative" not in words
        assert f"{MINUS}0.00" not in words
        assert "enters with a weight of 0: the fused layer is made of the others alone" in words


def test_a_table_of_costs_scrolls_where_there_is_no_room(tmp_path):
    for number, depths in enumerate(((8,), (1, 2, 4, 8))):
        tree = check_page(page_of(write_story(tmp_path / str(number), depth=8, depths=depths, rounds=8)))
        boxes = [box for box in tree.iter("div") if "scroll" in (box.get("class") or "").split()]
        assert "Costs by stage" in [caption.text for box in boxes for caption in box.iter("caption")]


def test_a_stage_that_has_only_begun_is_told(tmp_path):
    folder = write_story(tmp_path, depth=8, depths=(2, 8), rounds=3, planned=6)
    begun = stage_record(8, 8, np.random.default_rng(0), finished=False)
    stages = json.loads((folder / "record.json").read_text())["stages"]
    edit(folder, "record.json", stages=[*stages, begun.to_plain()], stopped_by=2)
    words = text_of(page_of(folder))
    assert "stopped after round 3 of 6" in words
    assert "so far in stages of 2, 8 layers" in words
    [full] = read_story(folder).full_model
    assert [point.round for point in full] == [0, 3]


def test_a_resume_is_marked_once_on_each_axis_and_changes_nothing_else(tmp_path):
    plain = page_of(write_story(tmp_path, rounds=12))
    resumed = page_of(write_story(tmp_path, rounds=12, resumed=[7]))
    assert "resumed" not in text_of(plain)
    without = re.sub(r'<g class="resume">.*?</g>\n', "", resumed)
    without = without.replace(", resumed after round 7", "")
    without = re.sub(r"<p>A dotted line with ▲.*?</p>\n", "", without)
    assert without == plain


def test_objects_are_named_and_the_command_does_not_claim_to_reproduce_them(tmp_path):
    words = text_of(page_of(write_story(tmp_path, objects={"growth": "LastLayerFirst", "data": "FederatedData"})))
    assert "with objects: growth (LastLayerFirst), data (FederatedData). A command alone cannot reproduce it" in words
    assert "growth object LastLayerFirst in place of devft" in words
    assert "LastLayerFirst with fedit on the bundled model" in words


def test_the_command_and_what_differs_come_first(tmp_path):
    folder = write_story(tmp_path, rank=4, devices=2)
    tree = check_page(page_of(folder))
    [command] = tree.findall(".//pre/code")
    assert command.text == f"devft run --rank 4 --rounds 12 --devices 2 --out {folder}"
    tables = {
        table.find("caption").text: table for table in reversed(list(tree.find(".//section[@id='settings']").iter("table")))
    }
    first = [row.find("th").text for row in tables["What is computed"].findall("tbody/tr")]
    # alpha follows the rank, so that it is another one, too.
    assert first == ["rank", "alpha", "rounds"]
    spaced = write_story(tmp_path / "a  b")
    [command] = check_page(page_of(spaced)).findall(".//pre/code")
    assert command.text == f"devft run --rounds 12 --out '{spaced}'"
    other = write_story(tmp_path / "b", data=("a.json", "b.json"))
    [command] = check_page(page_of(other)).findall(".//pre/code")
    assert command.text == f"devft run --data a.json,b.json --rounds 12 --out {other}"


def test_a_long_wide_run_with_many_clients_stays_small(tmp_path):
    folder = write_story(tmp_path, depth=32, rounds=300, clients=1_000, evaluate_every=5)
    html = page_of(folder)
    check_page(html)
    assert len(html.encode()) < 1_500_000
    words = text_of(html)
    assert "The first 100 clients are drawn." in words
    assert "a row is 17 clients and a column is up to 3 rounds, and the shade counts participations" in words


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no run; name a folder that `devft run` wrote"),
        (lambda folder: (folder / "summary.json").unlink(), "has not finished a round yet"),
        (lambda folder: (folder / "metrics.jsonl").unlink(), "has not finished a round yet"),
        (lambda folder: (folder / "metrics.jsonl").write_text('{"round": 1}\n'), r"another version .*lacks a usable stage"),
        (lambda folder: (folder / "summary.json").write_text("{}"), r"another version .*lacks a usable final_loss"),
        (lambda folder: (folder / "summary.json").write_text("["), r"summary.json cannot be read"),
        (lambda folder: edit(folder, "summary.json", stages=[]), "its record lacks a usable stages"),
        (lambda folder: edit(folder, "summary.json", stages=3), r"damaged \(its record lacks a usable stages\)"),
        (lambda folder: edit(folder, "split.json", clients=[]), "names clients that split.json lacks"),
        (lambda folder: edit(folder, "config.json", no_such_option=1), "the option 'no_such_option' does not exist"),
        (lambda folder: cut_first_line(folder), "not one line for each round"),
    ],
)
def test_a_damaged_folder_gives_one_sentence(tmp_path, capfd, damage, sentence):
    folder = write_story(tmp_path)
    damage(folder)
    with pytest.raises(InputError, match=sentence):
        write_report(folder)
    assert run_command(["report", str(folder)]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert not (folder / "report.html").exists()


def edit(folder, name, **values):
    (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), **values}))


def cut_first_line(folder):
    (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().split("\n", 1)[1])


def test_a_folder_or_file_that_cannot_be_is_named(tmp_path):
    with pytest.raises(InputError, match="typo does not exist; name one that `devft run` wrote"):
        write_report(tmp_path / "typo")
    folder = write_story(tmp_path / "run")
    with pytest.raises(
        InputError, match=r"page.html cannot be written \(No such file or directory\); give another file by --out"
    ):
        write_report(folder, tmp_path / "absent" / "page.html")


@given(st.integers(1, 400), st.integers(1, 150))
def test_columns_of_a_map_cover_all_rounds_once(rounds, most):
    bins = bins_of([Stage(1, {}, [{}] * rounds, 0)], most)
    assert len(bins) == min(rounds, most)
    assert [number for first, last in bins for number in range(first, last + 1)] == list(range(1, rounds + 1))


@pytest.mark.parametrize("name", ["summary.json", "split.json", "metrics.jsonl", "config.json"])
def test_whatever_a_value_of_a_record_becomes_is_one_sentence_or_a_page(tmp_path, name):
    write_story(tmp_path / "run", depth=4, rounds=3)
    path = tmp_path / "run" / name
    text = path.read_text()
    lines = text.splitlines(keepends=True) if name.endswith("l") else [text]
    record = json.loads(lines[0])

    def places(value, place=()):
        yield place
        for key in value if isinstance(value, dict) else range(min(1, len(value))) if isinstance(value, list) else ():
            if len(place) < 3:
                yield from places(value[key], (*place, key))

    wrong = ({}, "7", None, [], -1, float("nan"), 10**30, [None])
    for number, place in enumerate(places(record)):
        # A page takes its time, so that each place has every second value.
        for new in wrong[number % 2 :: 2]:
            changed = copy.deepcopy(record)
            if place:
                within = changed
                for key in place[:-1]:
                    within = within[key]
                within[place[-1]] = new
            else:
                changed = new
            path.write_text("".join([json.dumps(changed) + "\n", *lines[1:]]))
            with contextlib.suppress(InputError):
                write_report(tmp_path / "run")

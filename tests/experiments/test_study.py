"""Verdicts from figures, results as files, and the README that is written from them."""

import json
import re
from xml.etree import ElementTree

import pytest

from experiments import study
from experiments.all import BY_NAME, EXPERIMENTS, main
from experiments.claims import (
    ANSWERED,
    NOT_REPRODUCED,
    NOT_SHOWN,
    NOT_TESTABLE,
    REPRODUCED,
    AsLow,
    Factor,
    Lower,
    Predicts,
    Question,
    Room,
    Value,
    with_stages,
)
from experiments.pictures import picture
from experiments.readme import README, regenerated, results_of
from experiments.scales import DEMO, PAPER
from experiments.study import RESULTS, read_results, run_experiment, write_results
from tests.comparing.comparisons import arm, comparison


def arms_with(measure="final_loss", **values):
    """Arms with a figure for every seed."""
    return {
        name: {"runs": [{"seed": seed, "measures": {measure: value}} for seed, value in enumerate(each)]}
        for name, each in values.items()
    }


FEDIT = (2.0, 2.1, 2.2)
LOWER = (1.5, 1.61, 1.69)
NEAR = (2.01, 2.08, 2.21)


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"a": LOWER, "b": FEDIT}, REPRODUCED),
        ({"a": NEAR, "b": FEDIT}, REPRODUCED),
        # Within the interval of the mean, and yet higher with every seed by about as much.
        ({"a": (2.05, 2.15, 2.26), "b": FEDIT}, NOT_REPRODUCED),
        ({"a": (3.0, 3.1, 3.2), "b": FEDIT}, NOT_REPRODUCED),
        ({"a": LOWER[:1], "b": FEDIT[:1]}, NOT_SHOWN),
        ({"b": FEDIT}, NOT_TESTABLE),
    ],
)
def test_an_arm_is_as_low_if_it_is_within_the_interval_and_not_shown_to_be_higher(values, status):
    assert AsLow("a", "b", "a is as good.").judged(arms_with(**values)).status == status


def with_gain(**figures):
    """Arms with alignment and gain for one or two seeds."""
    return {
        name: {
            "runs": [
                {"seed": seed, "measures": {"alignment": before, "gain": gain}} for seed, (before, gain) in enumerate(each)
            ]
        }
        for name, each in figures.items()
    }


def test_a_figure_predicts_the_gain_if_it_orders_the_arms_alike():
    alike = with_gain(a=[(0.1, 1.0), (0.3, 5.0)], b=[(0.2, 1.5), (0.2, 4.0)], c=[(0.9, 3.0), (0.1, 2.0)])
    found = Predicts("alignment", 0.7, "Does it?").judged(alike)
    assert found.status == ANSWERED
    assert found.sentence.startswith("yes: 1.00 on average over seeds (1.00, 1.00), 3 submodels")
    against = with_gain(a=[(0.9, 1.0)], b=[(0.5, 1.5)], c=[(0.1, 3.0)])
    assert Predicts("alignment", 0.7, "Does it?").judged(against).sentence.startswith("no: -1.00")
    assert Predicts("alignment", -0.7, "Does it?").judged(against).sentence.startswith("yes: -1.00")
    assert Predicts("alignment", 0.7, "Does it?").judged(with_gain(a=[(0.9, 1.0)])).status == NOT_TESTABLE


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"a": LOWER, "b": FEDIT}, REPRODUCED),
        ({"a": FEDIT, "b": LOWER}, NOT_REPRODUCED),
        ({"a": FEDIT, "b": NEAR}, NOT_SHOWN),
        ({"a": LOWER[:1], "b": FEDIT[:1]}, NOT_SHOWN),
        ({"a": LOWER}, NOT_TESTABLE),
        ({"b": FEDIT}, NOT_TESTABLE),
        # One of two on the other side decides; one that is open leaves the claim open.
        ({"a": FEDIT, "b": LOWER, "c": (3.0, 3.1, 3.2)}, NOT_REPRODUCED),
        ({"a": FEDIT, "b": NEAR, "c": (3.0, 3.1, 3.25)}, NOT_SHOWN),
        # Exactly the same difference for every seed is no chance.
        ({"a": (1.0, 2.0), "b": (2.0, 3.0)}, REPRODUCED),
    ],
)
def test_an_arm_is_lower_if_the_interval_of_the_paired_difference_says_so(values, status):
    claim = Lower("a", ("b", "c"), "a is better.")
    assert claim.judged(arms_with(**values)).status == status


def test_a_verdict_shows_its_figures():
    said = Lower("a", ("b",), "").judged(arms_with(a=FEDIT, b=LOWER)).sentence
    assert said.startswith("a ends at 2.100 (")
    assert "b -0.500 ± " in said
    assert said.endswith("(lower).")


def test_a_question_is_answered_by_a_difference_on_either_side():
    for other, status in ((LOWER, ANSWERED), ((3.0, 3.1, 3.25), ANSWERED), (NEAR, NOT_SHOWN)):
        assert Question("a", ("b",), "?").judged(arms_with(a=FEDIT, b=other)).status == status
    assert Question("a", ("b",), "?").judged(arms_with(a=FEDIT)).status == NOT_TESTABLE


def test_room_is_what_training_takes_from_the_untuned_loss():
    arms = arms_with(a=FEDIT)
    for run in arms["a"]["runs"]:
        run["base_loss"] = run["measures"]["final_loss"] + 0.5
    found = Room("a", "How much?").judged(arms)
    assert found.status == ANSWERED
    assert found.sentence == "a lowers the untuned model's 2.600 by 0.500."
    arms["a"]["runs"] = arms["a"]["runs"][:1]
    assert Room("a", "How much?").judged(arms).status == NOT_SHOWN
    assert Room("a", "How much?").judged(arms_with(a=FEDIT)).status == NOT_TESTABLE
    assert Room("b", "How much?").judged(arms).status == NOT_TESTABLE


@pytest.mark.parametrize(
    ("few", "many", "status"),
    [
        ((10, 10), (21, 21), REPRODUCED),
        ((10, 10), (19, 19), NOT_REPRODUCED),
        # Within the tolerance of a factor with three digits.
        ((100, 100), (198, 198), REPRODUCED),
        ((10.0, 10.1, 9.9), (25.0, 25.4, 24.4), REPRODUCED),
        ((10.0, 10.1, 9.9), (12.0, 12.2, 11.8), NOT_REPRODUCED),
        ((10.0, 5.0), (15.0, 15.0), NOT_SHOWN),
    ],
)
def test_a_factor_is_reproduced_if_the_mean_ratio_reaches_it(few, many, status):
    found = Factor("few", "many", "bytes_up", 2.0, "").judged(arms_with("bytes_up", few=few, many=many))
    assert found.status == status
    assert "times less" in found.sentence


def test_a_cost_to_a_target_that_no_seed_reaches():
    arms = arms_with("bytes_to_target", many=(1.0, 2.0)) | arms_with(few=(3.0, 3.0))
    assert Factor("few", "many", "bytes_to_target", 1.0, "").judged(arms).status == NOT_REPRODUCED
    assert Factor("few", "many", "seconds_train", 1.0, "").judged(arms).status == NOT_TESTABLE


def test_a_value_agrees_within_two_per_cent():
    for value, status in ((1.01e9, REPRODUCED), (1.1e9, NOT_REPRODUCED)):
        assert Value("a", "bytes_up", 1e9, "").judged(arms_with("bytes_up", a=(value,))).status == status
    assert Value("b", "bytes_up", 1e9, "").judged({}).status == NOT_TESTABLE


def test_stages_are_arms_with_figures_of_a_round():
    run = {"seed": 0, "measures": {}, "stages": [{"layers": 2, "rounds": 4, "seconds": 8.0, "bytes_up": 400}]}
    found = with_stages({"DevFT": {"runs": [run]}})
    assert list(found) == ["DevFT", "DevFT, stage 1"]
    measures = found["DevFT, stage 1"]["runs"][0]["measures"]
    assert (measures["seconds_of_a_round"], measures["bytes_of_a_round"], measures["layers"]) == (2.0, 100.0, 2)


@pytest.fixture
def compared(monkeypatch):
    """Every comparison has these figures and is not run."""
    made = comparison(
        arm("copy", (2.0, 2.1, 2.2)), arm("anchor only", (3.0, 3.2, None)), arm("delta", NEAR), arm("anchor delta", LOWER)
    )

    class Compared:
        comparison = made
        stopped_by = None

    monkeypatch.setattr(study, "compare", lambda *rest, **named: Compared)


def test_results_are_written_and_read(compared, tmp_path):
    experiment = BY_NAME["transfer"]
    results = run_experiment(experiment, DEMO, tmp_path / "runs")
    path = write_results(results, tmp_path)
    assert path == tmp_path / "demo" / "transfer.json"
    assert read_results("transfer", "demo", tmp_path) == json.loads(json.dumps(results))
    assert read_results("transfer", "real", tmp_path) is None
    [model] = results["models"]
    assert "data" not in model["options"]
    assert model["options"]["rounds"] == DEMO.bases[0].rounds
    runs = model["arms"]["anchor only"]["runs"]
    assert [run["measures"].get("final_loss") for run in runs] == [3.0, 3.2, None]
    assert runs[2]["error"] == "3 of 4 updates are not finite."
    assert runs[0]["curve"][-1] == [4, 2.0, 1000.0, 3.0]
    assert runs[0]["run"] == "anchor only-0"
    # What the part of the experiment sets is in the results, too.
    part = experiment.parts(DEMO.bases[0])[0]
    assert model["arms"]["copy"]["options"].items() >= dict(part.options).items()


def test_the_readme_shows_verdicts_tables_and_failures(compared, tmp_path):
    experiment = BY_NAME["transfer"]
    write_results(run_experiment(experiment, DEMO, tmp_path / "runs"), tmp_path)
    before = "above\n<!-- results -->\nold\n<!-- end of results -->\nbelow\n"
    page = regenerated(before, EXPERIMENTS, tmp_path)
    assert page.startswith("above\n")
    assert page.endswith("\nbelow\n")
    assert "\nold\n" not in page
    assert "| [Transfer](#transfer) | 1 answered | not run yet |  |" in page
    assert "demo: **answered**. Copy ends at 2.100" in page
    assert "| anchor only | 3.100" in page
    assert "anchor only, seed 2, failed: 3 of 4 updates are not finite." in page
    assert regenerated(page, EXPERIMENTS, tmp_path) == page
    drawn = ElementTree.fromstring(picture(experiment, results_of(experiment, tmp_path)["demo"]))
    assert {"copy", "anchor only", "delta", "anchor delta"} <= {text.text for text in drawn.findall(".//{*}text")}


def test_scores_of_one_seed_have_intervals_over_the_items_and_the_base_is_above_them(compared, tmp_path):
    results = run_experiment(BY_NAME["transfer"], DEMO, tmp_path / "runs")
    [model] = results["models"]
    for arm_name, by_run in {
        "copy": [[0.5, 0.01]],
        "delta": [[0.4, 0.01], [0.6, 0.02]],
        "anchor delta": [[0.25, None]],
    }.items():
        for run, value in zip(model["arms"][arm_name]["runs"], by_run, strict=False):
            run["scores"] = {"piqa acc": value}
    model["base_scores"] = {"piqa acc": [0.55, 0.02]}
    write_results(results, tmp_path)
    lines = regenerated("<!-- results -->\n<!-- end of results -->", EXPERIMENTS, tmp_path).splitlines()
    shown = {
        name: line.rsplit("|", 2)[1].strip() for line in lines for name in [line[2:].split(" |")[0]] if line[:2] == "| "
    }
    assert {name: shown[name] for name in ("the untuned base", "copy", "anchor only", "delta", "anchor delta")} == {
        "the untuned base": "55.0 ± 3.9%",
        "copy": "50.0 ± 2.0%",
        "anchor only": "",
        "delta": "50.0%",
        "anchor delta": "25.0%",
    }
    tables = [line for line in lines if line.startswith(("| the untuned base", "| copy"))]
    assert tables[0].startswith("| the untuned base")


def test_the_paper_s_scale_is_planned(tmp_path):
    results = run_experiment(BY_NAME["figure7"], PAPER, tmp_path)
    [model] = results["models"]
    arms = with_stages(model["arms"])
    assert [stage["layers"] for stage in model["arms"]["DevFT"]["runs"][0]["stages"]] == [4, 8, 16, 32]
    time, sent, *_ = BY_NAME["figure7"].claims
    assert time.judged(arms).status == NOT_TESTABLE
    assert "8.00 times less" in sent.judged(arms).sentence


def test_the_committed_readme_follows_from_the_committed_results():
    text = README.read_text(encoding="utf-8")
    assert regenerated(text, EXPERIMENTS) == text
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


def test_committed_results_are_complete_and_name_no_place_of_a_machine():
    for path in RESULTS.rglob("*.json"):
        results = json.loads(path.read_text(encoding="utf-8"))
        assert path.parent.name == results["scale"]
        experiment = BY_NAME[path.stem]
        names = [experiment.name for experiment in EXPERIMENTS]
        assert results["experiment"] in names
        assert path.with_suffix(".svg").exists() == (picture(experiment, results) is not None)
        assert not [text for text in texts(results) if text.startswith("/") or " /" in text]


def texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from texts(each)


def test_options_of_one_s_own_do_not_replace_the_study_s_results():
    assert main(["--set", "rounds=2"]) == 2


@pytest.mark.slow
def test_an_experiment_from_command_to_picture(tmp_path):
    small = ("rounds=4", "local_steps=1", "batch_size=2", "data=microtasks:train:200", "test_data=microtasks:test:8")
    command = ["--scale", "demo", "--only", "figure7", "--seeds", "0", "--set", *small]
    command += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(command) == 0
    results = read_results("figure7", "demo", tmp_path / "results")
    arms = results["models"][0]["arms"]
    assert [stage["layers"] for stage in arms["DevFT"]["runs"][0]["stages"]] == [2, 4, 8, 16]
    assert arms["FedIT"]["runs"][0]["measures"]["bytes_up"] > arms["DevFT"]["runs"][0]["measures"]["bytes_up"]
    assert (tmp_path / "results" / "demo" / "figure7.svg").exists()
    # The runs are there: the same command only reads them.
    assert main(command) == 0
    assert read_results("figure7", "demo", tmp_path / "results") == results

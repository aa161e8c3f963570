"""Choices of tasks: how they are written, what groups stand for, and what is refused."""

import json

import pytest

from devft_jax.errors import InputError
from devft_jax.harness import tasks
from devft_jax.harness.tasks import GROUPS, TaskChoice, open_tasks

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")


def test_a_choice_names_items_and_shots():
    assert TaskChoice.parse("arc_easy") == TaskChoice("arc_easy")
    assert TaskChoice.parse("mmlu:500@5") == TaskChoice("mmlu", 500, 5)
    assert TaskChoice.parse("mmlu@5") == TaskChoice("mmlu", None, 5)
    assert TaskChoice.parse("dir:x/own.yaml:20") == TaskChoice("dir:x/own.yaml", 20)
    with pytest.raises(InputError, match=r"'arc_easy:0', a task of no items"):
        TaskChoice.parse("arc_easy:0")
    with pytest.raises(InputError, match=r"names no task"):
        TaskChoice.parse(" ")


def test_groups_hold_choices():
    assert all(TaskChoice.parse(member) for members in GROUPS.values() for member in members)
    assert tasks._members("quick:10")[0] == "arc_easy:10"
    assert "mmlu:10@5" in tasks._members("quick:10")
    assert tasks._members("arc_easy:3") == ("arc_easy:3",)


def test_items_of_a_group_are_in_proportion_to_its_tasks():
    assert tasks._limits({"a": 100, "b": 50, "c": 50}, 10) == {"a": 5, "b": 3, "c": 2}
    assert tasks._limits({"a": 100, "b": 1}, 5) == {"a": 5, "b": 0}
    assert tasks._limits({"a": 3}, 3) == {"a": None}
    assert tasks._limits({"a": 3, "b": 3}, None) == {"a": None, "b": None}


def write_files(folder):
    """TruthfulQA and PIQA of a few questions."""
    folder.mkdir()
    questions = [
        {"question": f"Why {number}?", "mc1_targets": {"so": 1, "no": 0}, "mc2_targets": {"so": 1, "no": 0}}
        for number in range(4)
    ]
    (folder / "mc_task.json").write_text(json.dumps(questions))
    lines = [json.dumps({"query": f"q{number}", "choices": ["a", "b"], "gold": 1}) for number in range(3)]
    (folder / "piqa.jsonl").write_text("\n".join(lines))
    return folder


def test_tasks_open_from_local_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    files = write_files(tmp_path / "files")
    names = ["truthfulqa_mc1:2", "piqa@1"]
    opened = open_tasks(names, benchmark_files=files, cache=tmp_path / "cache")
    assert opened.choices == {"truthfulqa_mc1": TaskChoice("truthfulqa_mc1", 2), "piqa": TaskChoice("piqa", None, 1)}
    assert len(opened.tasks["piqa"].eval_docs) == 3
    with pytest.raises(InputError, match=r"'piqa' is chosen twice"):
        open_tasks(["piqa", "piqa:2"], benchmark_files=files, cache=tmp_path / "cache")


def test_microtasks_are_worded_and_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    [task] = open_tasks(["microtasks:40"], cache=tmp_path).tasks.values()
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=2)
    prompt, settings = task.instances[0].args
    assert prompt.startswith("Below is an instruction")
    assert prompt.endswith("### Response:")
    assert settings["do_sample"] is False
    document = task.eval_docs[0]
    assert task.process_results(document, [document["answer"]]) == {"exact_match": 1.0}
    assert task.process_results(document, ["something else"]) == {"exact_match": 0.0}


def test_an_unknown_name_gives_the_nearest(tmp_path):
    with pytest.raises(InputError, match=r"task 'pica' is unknown; the nearest names are .*piqa"):
        open_tasks(["pica"], benchmark_files=write_files(tmp_path / "files"), cache=tmp_path / "cache")


@pytest.mark.parametrize(
    "data", ["dataset_path: json\ndataset_kwargs: {data_files: {test: FOLDER/nowhere.jsonl}}", "dataset_path: no/nowhere"]
)
def test_data_that_cannot_be_had_is_one_sentence(tmp_path, monkeypatch, data):
    """A local file that is absent, and data of the hub without a network."""
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = tmp_path / "own.yaml"
    path.write_text(
        f"task: own\n{data.replace('FOLDER', str(tmp_path))}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: q\ndoc_to_choice: [a, b]\ndoc_to_target: 0\n"
    )
    with pytest.raises(InputError, match=r"own.yaml or its data cannot be loaded \(.*nowhere.*\); name a folder of bench"):
        open_tasks([str(path)], cache=tmp_path / "cache")

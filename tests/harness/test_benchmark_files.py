"""Benchmarks' originals become task files; what is wrong in one is named by file and line."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest
import yaml

from devft_jax.errors import InputError
from devft_jax.harness.benchmark_files import task_folder

BBH = ("navigate", "word_sorting")


@pytest.fixture
def harness(tmp_path) -> Path:
    """A folder like that of the harness's own tasks, as far as tasks include its files."""
    root = tmp_path / "lm_eval_tasks"
    own = ["mmlu/default/mmlu_anatomy", "mmlu/default/mmlu_virology", "mmlu/default/_mmlu", "mmlu/default/_mmlu_stem"]
    own += [f"bbh/cot_fewshot/{name}" for name in (*BBH, "_bbh")]
    for name in own:
        path = root / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return root


MMLU = '"Which, of these?",one,two,three,four,C\nWhat is it?,a,b,c,d,A\n'
TRUTHFULQA = {"question": "Why?", "mc1_targets": {"so": 1, "no": 0}, "mc2_targets": {"so": 1, "thus": 1, "no": 0}}
IFEVAL = [
    {"key": 1, "prompt": "p", "instruction_id_list": ["a", "b"], "kwargs": [{}, {"num_words": 3}]},
    {"key": 2, "prompt": "q", "instruction_id_list": ["c"], "kwargs": [{"relation": "at least"}]},
]
CHOICES = {"query": "Question: What is hot?", "choices": ["ice", "fire"], "gold": 1}


def write_all(folder: Path, subjects=("anatomy", "virology")) -> None:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "mmlu.zip", "w") as archive:
        for subject in subjects:
            for split in ("dev", "test", "val"):
                archive.writestr(f"data/{split}/{subject}_{split}.csv", MMLU)
    (folder / "mc_task.json").write_text(json.dumps([TRUTHFULQA]))
    (folder / "bbh").mkdir()
    for name in BBH:
        text = json.dumps({"canary": "c", "examples": [{"input": "i", "target": "t"}]})
        (folder / "bbh" / f"{name}.json").write_text(text)
    (folder / "input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in IFEVAL))
    (folder / "arc_easy.jsonl.gz").write_bytes(gzip.compress(json.dumps(CHOICES).encode()))
    (folder / "piqa.jsonl").write_text(json.dumps(CHOICES | {"query": "Question: dresser\n"}) + "\n")


def task(made: Path, name: str) -> dict:
    return yaml.safe_load((made / f"{name}.yaml").read_text())


def data(made: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (made / name).read_text().splitlines()]


def test_every_benchmark_becomes_tasks(tmp_path, harness):
    write_all(tmp_path / "files")
    made = task_folder(tmp_path / "files", tmp_path / "cache", harness)
    names = {path.stem for path in made.glob("*.yaml")}
    assert names == {
        *("mmlu", "mmlu_stem", "mmlu_anatomy", "mmlu_virology", "truthfulqa_mc1", "truthfulqa_mc2"),
        *("bbh", "bbh_cot_fewshot_navigate", "bbh_cot_fewshot_word_sorting", "ifeval", "arc_easy", "piqa"),
    }
    anatomy = task(made, "mmlu_anatomy")
    assert anatomy["include"] == str(harness / "mmlu/default/mmlu_anatomy.yaml")
    assert (anatomy["dataset_path"], anatomy["dataset_name"]) == ("json", None)
    files = anatomy["dataset_kwargs"]["data_files"]
    assert files == {split: str(made / f"mmlu_anatomy_{split}.jsonl") for split in ("dev", "test")}
    assert data(made, "mmlu_anatomy_test.jsonl")[0] == {
        "question": "Which, of these?",
        "choices": ["one", "two", "three", "four"],
        "answer": 2,
    }
    [question] = data(made, "truthfulqa.jsonl")
    assert question["mc2_targets"] == {"choices": ["so", "thus", "no"], "labels": [1, 1, 0]}
    assert data(made, "bbh_cot_fewshot_navigate.jsonl") == [{"input": "i", "target": "t"}]
    assert data(made, "ifeval.jsonl")[1]["kwargs"] == [{"num_words": None, "relation": "at least"}]
    [arc] = data(made, "arc_easy.jsonl")
    assert arc == {
        "question": "What is hot?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "B",
    }
    assert data(made, "piqa.jsonl") == [{"goal": "dresser", "sol1": "ice", "sol2": "fire", "label": 1}]


def test_the_same_files_are_read_once_and_others_give_another_folder(tmp_path, harness):
    """A cache that went by a task's name would give stale questions."""
    write_all(tmp_path / "files")
    made = task_folder(tmp_path / "files", tmp_path / "cache", harness)
    written = (made / "piqa.jsonl").stat().st_mtime_ns
    assert task_folder(tmp_path / "files", tmp_path / "cache", harness) == made
    assert (made / "piqa.jsonl").stat().st_mtime_ns == written
    (tmp_path / "files" / "piqa.jsonl").write_text(json.dumps(CHOICES | {"gold": 0}))
    assert task_folder(tmp_path / "files", tmp_path / "cache", harness) != made


def test_groups_of_a_benchmark_need_all_of_its_tasks(tmp_path, harness):
    write_all(tmp_path / "files", subjects=("anatomy",))
    (tmp_path / "files" / "bbh" / "navigate.json").unlink()
    made = task_folder(tmp_path / "files", tmp_path / "cache", harness)
    names = {path.stem for path in made.glob("*.yaml")}
    assert {"mmlu_anatomy", "bbh_cot_fewshot_word_sorting"} <= names
    assert not {"mmlu", "mmlu_stem", "bbh", "mmlu_virology"} & names


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("piqa.jsonl", json.dumps(CHOICES) + "\n{", r"piqa.jsonl:2 is not valid JSON"),
        ("piqa.jsonl", "\n[1]\n", r"piqa.jsonl:2 is no JSON object"),
        ("piqa.jsonl", json.dumps(CHOICES | {"gold": 2}), r"piqa.jsonl:1 has no two texts as choices"),
        ("piqa.jsonl", json.dumps({"query": "a", "choices": []}), r"piqa.jsonl:1 has no field 'gold' that is a whole"),
        ("input_data.jsonl", json.dumps(IFEVAL[0] | {"prompt": 3}), r"data.jsonl:1 has no field 'prompt' that is text"),
        ("anatomy_test.csv", MMLU + "What?,a,b,c,d,E\n", r"anatomy_test.csv:3 is no question, four choices"),
        ("mc_task.json", json.dumps([TRUTHFULQA | {"mc1_targets": {"no": 0, "so": 1}}]), r"question 1 of .*first answer"),
        ("mc_task.json", "{}", r"mc_task.json holds no list of questions"),
        ("bbh/navigate.json", '{"examples": [{"input": "i"}]}', r"example 1 of .*navigate.json has no field 'target'"),
        ("arc_easy.jsonl.gz", "no archive", r"arc_easy.jsonl.gz cannot be unpacked"),
        ("mmlu.zip", "no archive", r"mmlu.zip cannot be unpacked"),
        ("something.txt", "", r"holds none of the benchmarks' files; it should hold one or more of mmlu.zip"),
    ],
)
def test_what_is_wrong_is_named_by_file_and_line(tmp_path, harness, name, text, sentence):
    path = tmp_path / "files" / name
    path.parent.mkdir(parents=True)
    path.write_text(text)
    for split in ("dev", "test"):
        if name == "anatomy_test.csv" and split == "dev":
            path.with_name(f"anatomy_{split}.csv").write_text(MMLU)
    with pytest.raises(InputError, match=sentence):
        task_folder(tmp_path / "files", tmp_path / "cache", harness)
    assert not (tmp_path / "cache").exists()


def test_there_is_no_such_folder(tmp_path, harness):
    with pytest.raises(InputError, match="does not exist; name the folder of the benchmarks' files"):
        task_folder(tmp_path / "nowhere", tmp_path / "cache", harness)

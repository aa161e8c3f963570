"""Benchmarks from local files: the originals are made into tasks of the harness that need no network.

A folder of originals is searched for files that are known by their names; what is not there is left out. For each benchmark
the questions are written as JSON lines, and beside them a YAML that includes the harness's own task and names these files as
its data, so that wording, metrics and version stay the harness's.

    benchmark    file                                       tasks
    MMLU         mmlu.zip, or its CSV files                 mmlu_<subject>, mmlu, mmlu_stem, ...
    TruthfulQA   mc_task.json                               truthfulqa_mc1, truthfulqa_mc2
    BBH          <name>.json, 27 of them                    bbh_cot_fewshot_<name>, bbh, bbh_cot_fewshot
    IFEval       input_data.jsonl                           ifeval
    ARC-easy     arc_easy.jsonl or .jsonl.gz                arc_easy
    PIQA         piqa.jsonl or .jsonl.gz                    piqa
"""

import csv
import gzip
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.files import decoded, existing_folder, json_objects, read_json, read_text
from devft_jax.files.writing import temporary_name
from devft_jax.models.huggingface.safetensors import one_line
from devft_jax.storage.digests import new_digest

FORMAT = "1"
"""Changes with what is written, so that folders of an earlier form are not taken for this one."""
Question = dict[str, Any]


@dataclass
class Benchmark:
    """Tasks made from a benchmark's files.

    Attributes:
      tasks: YAML settings by the name of the task.
      data: questions by the name of the file that they are written to.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    data: dict[str, list[Question]] = field(default_factory=dict)


def task_folder(folder: str | Path, cache: Path, harness: Path) -> Path:
    """A folder of task YAMLs for the benchmarks whose files lie in a folder; made once for the same files.

    Args:
      folder: the originals, in any subfolders.
      cache: where folders of tasks are kept.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: there is no such folder, none of the files, or a line of one that cannot be used.
    """
    source = existing_folder(folder, "name the folder of the benchmarks' files")
    files = sorted(path for path in source.rglob("*") if path.is_file())
    readers = [(read, found) for wanted, read in READERS if (found := [path for path in files if wanted(path)])]
    if not readers:
        raise InputError(
            f"the folder {source} holds none of the benchmarks' files; it should hold one or more of mmlu.zip, mc_task.json "
            "(TruthfulQA), the JSON files of BIG-Bench-Hard, input_data.jsonl (IFEval), arc_easy.jsonl, piqa.jsonl."
        )
    digest = new_digest(f"{FORMAT} {harness}".encode())
    for _, found in readers:
        for path in found:
            digest.update(path.name.encode() + path.read_bytes())
    made = cache / digest.hexdigest()
    if not made.is_dir():
        _write([read(found, harness) for read, found in readers], made)
    return made


def _write(benchmarks: Iterable[Benchmark], folder: Path) -> None:
    """Write data and tasks into a folder that appears as a whole."""
    import yaml

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(folder)
    partial.mkdir()
    for benchmark in benchmarks:
        for name, questions in benchmark.data.items():
            lines = "".join(json.dumps(question, ensure_ascii=False) + "\n" for question in questions)
            (partial / name).write_text(lines, encoding="utf-8")
        for name, settings in benchmark.tasks.items():
            text = yaml.safe_dump(_with_data_in(settings, folder), sort_keys=False, allow_unicode=True)
            (partial / f"{name}.yaml").write_text(text, encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:
        # Another process was faster.
        shutil.rmtree(partial, ignore_errors=True)


def _with_data_in(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A task's settings with the paths of its data files."""
    if "data_files" not in settings:
        return dict(settings)
    files = {split: str(folder / name) for split, name in settings["data_files"].items()}
    own = {name: value for name, value in settings.items() if name != "data_files"}
    return own | {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}


def _task(name: str, include: Path, data_files: Mapping[str, str], **others: Any) -> dict[str, Any]:
    return {"include": str(include), "task": name, "data_files": dict(data_files)} | others


def json_lines(path: Path) -> Iterator[tuple[str, Question]]:
    """The objects of a file of JSON lines, each with the place that a sentence names.

    Args:
      path: of the file, which may be compressed by gzip.

    Raises:
      InputError: the file cannot be read, or a line is no object.
    """
    if path.suffix == ".gz":
        try:
            text = decoded(gzip.decompress(path.read_bytes()), str(path))
        except (OSError, EOFError) as error:
            raise InputError(f"{path} cannot be unpacked ({one_line(error)}); restore it.") from error
    else:
        text = read_text(path)
    yield from json_objects(text, str(path))


def _needs(place: str, question: Mapping[str, Any], /, **kinds: type) -> None:
    """Raise `InputError` where a question lacks a field of a kind."""
    for name, kind in kinds.items():
        if not isinstance(question.get(name), kind) or isinstance(question.get(name), bool):
            words = {str: "text", list: "a list", dict: "an object", int: "a whole number"}
            raise InputError(f"{place} has no field '{name}' that is {words[kind]}; correct the line.")


def read_mmlu(files: list[Path], harness: Path) -> Benchmark:
    """MMLU (Hendrycks et al. 2021): 57 subjects, four choices.

    Args:
      files: mmlu.zip, or `<subject>_<split>.csv` files of its folders dev and test.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: a line that is no question, or a file that cannot be read.
    """
    tables: dict[tuple[str, str], tuple[str, str]] = {}
    for path in files:
        if path.suffix == ".csv":
            tables[_subject_and_split(path.name)] = str(path), read_text(path)
            continue
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if member.endswith(".csv"):
                        text = decoded(archive.read(member), f"{path}:{member}")
                        tables[_subject_and_split(Path(member).name)] = f"{path}:{member}", text
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be unpacked ({one_line(error)}); restore it.") from error
    made = Benchmark()
    own = harness / "mmlu" / "default"
    for subject in sorted({subject for subject, _ in tables}):
        if not all((subject, split) in tables for split in ("dev", "test")) or not (own / f"mmlu_{subject}.yaml").is_file():
            continue
        splits = {split: f"mmlu_{subject}_{split}.jsonl" for split in ("dev", "test")}
        for split, name in splits.items():
            made.data[name] = list(_mmlu_questions(*tables[subject, split]))
        made.tasks[f"mmlu_{subject}"] = _task(f"mmlu_{subject}", own / f"mmlu_{subject}.yaml", splits)
    return _with_groups(made, own)


def _with_groups(made: Benchmark, own: Path) -> Benchmark:
    """A benchmark with the harness's groups where all of its tasks are there: a part of them is no score of the whole."""
    files = sorted(own.glob("*.yaml"))
    groups = [path for path in files if path.stem.startswith("_")]
    if len(made.tasks) == len(files) - len(groups):
        made.tasks |= {path.stem.lstrip("_"): {"include": str(path)} for path in groups}
    return made


def _subject_and_split(name: str) -> tuple[str, str]:
    subject, _, split = name.removesuffix(".csv").rpartition("_")
    return subject, split


def _mmlu_questions(where: str, text: str) -> Iterator[Question]:
    reader = csv.reader(io.StringIO(text))
    for row in reader:
        if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
            raise InputError(f"{where}:{reader.line_num} is no question, four choices and a letter from A to D; correct it.")
        yield {"question": row[0], "choices": row[1:5], "answer": "ABCD".index(row[5])}


def read_truthfulqa(files: list[Path], harness: Path) -> Benchmark:
    """TruthfulQA's multiple choice (Lin et al. 2022), with one true answer (MC1) and with several (MC2).

    Args:
      files: mc_task.json.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: a question without answers, or whose first answer is not the true one of MC1.
    """
    [path, *_] = files
    questions = read_json(path)
    if not isinstance(questions, list):
        raise InputError(f"{path} holds no list of questions; restore it.")
    made = []
    for number, question in enumerate(questions, 1):
        place = f"question {number} of {path}"
        if not isinstance(question, dict):
            raise InputError(f"{place} is no object; correct it.")
        _needs(place, question, question=str, mc1_targets=dict, mc2_targets=dict)
        targets = {}
        for name in ("mc1_targets", "mc2_targets"):
            answers: dict[str, Any] = question[name]
            if not answers or any(label not in (0, 1) for label in answers.values()):
                raise InputError(f"{place} has {name} that are no answers with 0 or 1; correct it.")
            targets[name] = {"choices": list(answers), "labels": list(answers.values())}
        if targets["mc1_targets"]["labels"][0] != 1:
            raise InputError(f"{place} has an mc1_targets whose first answer is not the true one; put it first.")
        made.append({"question": question["question"]} | targets)
    own, data = harness / "truthfulqa", {"validation": "truthfulqa.jsonl"}
    tasks = {name: _task(name, own / f"{name}.yaml", data) for name in ("truthfulqa_mc1", "truthfulqa_mc2")}
    return Benchmark(tasks, {"truthfulqa.jsonl": made})


def read_bbh(files: list[Path], harness: Path) -> Benchmark:
    """BIG-Bench-Hard (Suzgun et al. 2023): 27 tasks, answered behind three worked examples.

    Args:
      files: `<name>.json` of the tasks.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: an example without input or target.
    """
    own = harness / "bbh" / "cot_fewshot"
    made = Benchmark()
    for path in files:
        if not (own / path.name).with_suffix(".yaml").is_file():
            continue
        content = read_json(path)
        examples = content.get("examples") if isinstance(content, dict) else None
        if not isinstance(examples, list):
            raise InputError(f"{path} holds no examples; restore it.")
        for number, example in enumerate(examples, 1):
            _needs(f"example {number} of {path}", example if isinstance(example, dict) else {}, input=str, target=str)
        name = f"bbh_cot_fewshot_{path.stem}"
        made.data[f"{name}.jsonl"] = [{"input": each["input"], "target": each["target"]} for each in examples]
        made.tasks[name] = _task(name, own / f"{path.stem}.yaml", {"test": f"{name}.jsonl"})
    return _with_groups(made, own)


def read_ifeval(files: list[Path], harness: Path) -> Benchmark:
    """IFEval (Zhou et al. 2023): instructions whose fulfilment a program checks.

    Args:
      files: input_data.jsonl.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: a line without prompt, instructions or their arguments.
    """
    questions = []
    names: dict[str, None] = {}
    for place, question in json_lines(files[0]):
        _needs(place, question, key=int, prompt=str, instruction_id_list=list, kwargs=list)
        names |= dict.fromkeys(name for arguments in question["kwargs"] for name in arguments)
        questions.append(question)
    # A table has the same columns in all rows: as in the harness's own copy, an argument that is not given is null.
    for question in questions:
        question["kwargs"] = [{name: arguments.get(name) for name in names} for arguments in question["kwargs"]]
    task = _task("ifeval", harness / "ifeval" / "ifeval.yaml", {"train": "ifeval.jsonl"})
    return Benchmark({"ifeval": task}, {"ifeval.jsonl": questions})


def read_arc_easy(files: list[Path], harness: Path) -> Benchmark:
    """ARC-easy (Clark et al. 2018): school science, multiple choice.

    Args:
      files: arc_easy.jsonl, with `query`, `choices` and `gold`.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: a line that is no such question.
    """
    questions = []
    for question, choices, gold in _choices(files[0]):
        labels = [chr(ord("A") + index) for index in range(len(choices))]
        questions.append({"question": question, "choices": {"text": choices, "label": labels}, "answerKey": labels[gold]})
    task = _task("arc_easy", harness / "arc" / "arc_easy.yaml", {"test": "arc_easy.jsonl"}, **_TEST_ALONE)
    return Benchmark({"arc_easy": task}, {"arc_easy.jsonl": questions})


def read_piqa(files: list[Path], harness: Path) -> Benchmark:
    """PIQA (Bisk et al. 2020): two ways to reach a goal.

    Args:
      files: piqa.jsonl, with `query`, `choices` and `gold`.
      harness: the folder of the harness's own tasks.

    Raises:
      InputError: a line that is no such question.
    """
    questions = []
    for goal, choices, gold in _choices(files[0]):
        questions.append({"goal": goal, "sol1": choices[0], "sol2": choices[1], "label": gold})
    task = _task("piqa", harness / "piqa" / "piqa.yaml", {"validation": "piqa.jsonl"}, training_split=None)
    return Benchmark({"piqa": task}, {"piqa.jsonl": questions})


_TEST_ALONE = {"training_split": None, "validation_split": None}


def _choices(path: Path) -> Iterator[tuple[str, list[str], int]]:
    """Question, choices and the right one's number, of lines in the form of llm-foundry."""
    for place, line in json_lines(path):
        _needs(place, line, query=str, choices=list, gold=int)
        choices = line["choices"]
        if (
            len(choices) < 2
            or not all(isinstance(choice, str) for choice in choices)
            or line["gold"] not in range(len(choices))
        ):
            raise InputError(f"{place} has no two texts as choices with the number of the right one as gold; correct it.")
        # The harness's own tasks put these words around a question.
        yield line["query"].removeprefix("Question: ").removesuffix("\n"), choices, line["gold"]


def _named(*names: str) -> Callable[[Path], bool]:
    return lambda path: path.name in names


def _is_mmlu(path: Path) -> bool:
    return path.name == "mmlu.zip" or (path.suffix == ".csv" and path.stem.endswith(("_dev", "_test")))


def _is_bbh(path: Path) -> bool:
    return path.suffix == ".json" and path.parent.name == "bbh"


Reader = Callable[[list[Path], Path], Benchmark]
READERS: tuple[tuple[Callable[[Path], bool], Reader], ...] = (
    (_is_mmlu, read_mmlu),
    (_named("mc_task.json"), read_truthfulqa),
    (_is_bbh, read_bbh),
    (_named("input_data.jsonl"), read_ifeval),
    (_named("arc_easy.jsonl", "arc_easy.jsonl.gz"), read_arc_easy),
    (_named("piqa.jsonl", "piqa.jsonl.gz"), read_piqa),
)
"""Which files belong to a benchmark, and what makes its tasks from them."""

"""Which tasks are evaluated: names of the harness, files of the user's, groups of ours; and running them.

A task is chosen as NAME, NAME:ITEMS (the first ITEMS items; of a group so many in all, from each task in proportion to its
size) and NAME@SHOTS (worked examples before a question), or both, as in mmlu:500@5.
"""

import contextlib
import difflib
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from devft_jax.errors import InputError
from devft_jax.files import cache_folder, read_text
from devft_jax.harness import NEEDS_LM_EVAL
from devft_jax.harness.benchmark_files import task_folder
from devft_jax.harness.microtasks import MICROTASKS, microtask_folder
from devft_jax.harness.results import Results
from devft_jax.models.huggingface.safetensors import one_line

GROUPS: Mapping[str, tuple[str, ...]] = {
    "paper": ("truthfulqa_mc1", "truthfulqa_mc2", "mmlu@5", "ifeval", "bbh"),
    "quick": ("arc_easy:300", "piqa:300", "truthfulqa_mc1:200", "truthfulqa_mc2:200", "mmlu:285@5"),
    "microtasks": (MICROTASKS,),
}
"""Our groups, by what they stand for: the paper's close-ended benchmarks, some that are soon finished, the microtasks."""
_CHOICE = re.compile(r"(?P<name>.+?)(?::(?P<limit>\d+))?(?:@(?P<shots>\d+))?")


@dataclass(frozen=True)
class TaskChoice:
    """A task or group as it was chosen.

    Attributes:
      name: of a task, group or tag, or the path of a YAML file.
      limit: most items; None for all.
      shots: worked examples before a question; None for the task's own number.
    """

    name: str
    limit: int | None = None
    shots: int | None = None

    @classmethod
    def parse(cls, text: str) -> "TaskChoice":
        """A choice as it is written, such as mmlu:500@5.

        Args:
          text: of the choice.

        Raises:
          InputError: no name, or no item.
        """
        found = _CHOICE.fullmatch(text.strip())
        if found is None:
            raise InputError(f"tasks holds '{text}', which names no task; write NAME, NAME:ITEMS or NAME@SHOTS.")
        limit, shots = (None if found[part] is None else int(found[part]) for part in ("limit", "shots"))
        if limit == 0:
            raise InputError(f"tasks holds '{text}', a task of no items; leave it out, or ask for one or more.")
        return cls(found["name"], limit, shots)


@dataclass(frozen=True)
class TaskOptions:
    """How tasks are run, where that is not said with a task's name.

    Attributes:
      limit: most items of each task; None for all.
      num_fewshot: worked examples before a question; None for each task's own number. Tasks that fix 0 keep it.
      apply_chat_template: whether prompts are formatted as conversations with the tokenizer's template.
      system_instruction: text before every prompt; None for none.
      seed: of the choice of worked examples.
    """

    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    system_instruction: str | None = None
    seed: int = 1234


@dataclass(frozen=True)
class OpenTasks:
    """Tasks whose data is there.

    Attributes:
      tasks: the harness's tasks by name.
      groups: its groups by name.
      group_map: members of the groups by name.
      choices: by a task's name, how it was chosen; its limit is the task's own part of a group's.
    """

    tasks: dict[str, Any]
    groups: dict[str, Any]
    group_map: dict[str, list[str]]
    choices: dict[str, TaskChoice]


def require_lm_eval() -> None:
    """Check that the extra is there.

    Raises:
      InputError: it is not installed.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise InputError(NEEDS_LM_EVAL) from error


def open_tasks(
    names: Sequence[str],
    *,
    benchmark_files: str | Path | None = None,
    cache: Path | None = None,
    template: str = "alpaca",
) -> OpenTasks:
    """Find tasks and load their data.

    Args:
      names: choices, as `TaskChoice.parse` reads them.
      benchmark_files: folder of benchmarks' original files, which then need no network; None for none.
      cache: where tasks made from files are kept; by default in the package's cache.
      template: the prompt template of the microtasks.

    Raises:
      InputError: a name that is unknown, a file that cannot be used, or data that cannot be had.
    """
    require_lm_eval()
    import lm_eval

    cache = cache_folder() / "benchmarks" if cache is None else cache
    choices = [TaskChoice.parse(each) for name in names for each in _members(name)]
    if not choices:
        raise InputError("tasks names none; give one or more, such as quick.")
    folders = []
    if any(choice.name == MICROTASKS for choice in choices):
        folders.append(microtask_folder(cache, template))
    if benchmark_files is not None:
        harness = Path(lm_eval.__file__).parent / "tasks"
        folders.append(task_folder(benchmark_files, cache, harness))
    with _quiet():
        manager = _manager(folders, choices)
        opened = OpenTasks({}, {}, {}, {})
        for choice in choices:
            _open(opened, manager, choice, offline=benchmark_files is None)
    if "ifeval" in opened.tasks:
        _check_punkt()
    return opened


def _members(text: str) -> tuple[str, ...]:
    """What a name stands for: a group of ours by its members, which take on its limit and shots; anything else itself."""
    choice = TaskChoice.parse(text)
    if choice.name not in GROUPS:
        return (text,)
    found = []
    for member in GROUPS[choice.name]:
        own = TaskChoice.parse(member)
        limit = own.limit if choice.limit is None else choice.limit
        shots = own.shots if choice.shots is None else choice.shots
        found.append(own.name + (f":{limit}" if limit else "") + ("" if shots is None else f"@{shots}"))
    return tuple(found)


def _manager(folders: Sequence[Path], choices: Sequence[TaskChoice]) -> Any:
    """The harness's index of tasks; its own, which take seconds to read, only where one of them is asked for."""
    from lm_eval.tasks import TaskManager

    paths = [str(folder) for folder in folders]
    ours = TaskManager(include_path=paths or None, include_defaults=False)
    if all(choice.name in ours.all_tasks or _stands_alone(Path(choice.name)) for choice in choices):
        return ours
    return TaskManager(include_path=paths or None)


def _stands_alone(path: Path) -> bool:
    """Whether a path is a task's file, and not a group's, which may name any of the harness's tasks."""
    return path.is_file() and re.search(r"^group:", read_text(path), re.MULTILINE) is None


def _open(opened: OpenTasks, manager: Any, choice: TaskChoice, *, offline: bool) -> None:
    """Load the tasks of a choice and add them to those that are open."""
    if choice.name not in manager.all_tasks and not Path(choice.name).is_file():
        near = difflib.get_close_matches(choice.name, [*manager.all_tasks, *GROUPS], n=3)
        names = f"the nearest names are {', '.join(near)}" if near else "the harness lists its names with `lm-eval ls tasks`"
        raise InputError(f"task '{choice.name}' is unknown; {names}.")
    try:
        loaded = manager.load([choice.name])
    except Exception as error:  # whatever a task's own code, its data's and the network's raise
        remedy = (
            "name a folder of benchmark files with benchmark_files, or connect to the network"
            if offline
            else ("correct it, or leave the task out")
        )
        raise InputError(f"the task {choice.name} or its data cannot be loaded ({one_line(error)}); {remedy}.") from error
    tasks = loaded["tasks"]
    twice = next((name for name in tasks if name in opened.tasks), None)
    if twice is not None:
        raise InputError(f"task '{twice}' is chosen twice; leave one of the choices out.")
    limits = _limits({name: len(task.eval_docs) for name, task in tasks.items()}, choice.limit)
    opened.tasks.update({name: task for name, task in tasks.items() if limits[name] != 0})
    opened.choices.update({name: replace(choice, name=name, limit=limits[name]) for name in tasks if limits[name] != 0})
    opened.groups.update(loaded.get("groups", {}))
    opened.group_map.update(loaded.get("group_map", {}))


def _limits(sizes: Mapping[str, int], limit: int | None) -> dict[str, int | None]:
    """How many items of each task make `limit` in all: in proportion to their sizes, by the largest remainder."""
    total = sum(sizes.values())
    if limit is None or limit >= total:
        return dict.fromkeys(sizes)
    exact = np.array([limit * size / total for size in sizes.values()])
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact, kind="stable")[: limit - int(counts.sum())]] += 1
    return dict(zip(sizes, counts.tolist(), strict=True))


def _check_punkt() -> None:
    """Raise `InputError` where IFEval's checks would fail after all of its texts are there."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise InputError(
            "the task ifeval needs NLTK's punkt_tab, which is not on this machine; run `python -m nltk.downloader "
            "punkt_tab` where there is a network, or name the folder that holds tokenizers/punkt_tab in NLTK_DATA."
        ) from error


def _sizes(opened: OpenTasks, options: TaskOptions) -> dict[str, int]:
    """How many items of each task are evaluated."""
    found = {}
    for name, task in opened.tasks.items():
        limits = [limit for limit in (options.limit, opened.choices[name].limit) if limit is not None]
        found[name] = min([*limits, len(task.eval_docs)])
    return found


def tasks_digest(names: Sequence[str], opened: OpenTasks, options: TaskOptions) -> str:
    """A name for an evaluation by its content: other tasks, settings or items give another, as does another lm-eval.

    Args:
      names: the choices from which the tasks were opened.
      opened: the tasks.
      options: how they are run.

    Returns:
      Eight hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps([metadata.version("lm-eval"), names, asdict(options)]).encode())
    for name in names:
        file = Path(TaskChoice.parse(name).name)
        digest.update(file.read_bytes() if file.is_file() else b"")
    for name, size in _sizes(opened, options).items():
        task = opened.tasks[name]
        digest.update(f"{name} {task.VERSION} {size}".encode())
        for item in itertools.islice(iter(task.eval_docs), size):
            digest.update(json.dumps(item, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:8]


def run_tasks(language_model: Any, opened: OpenTasks, options: TaskOptions = TaskOptions()) -> Results:
    """Evaluate a model on tasks.

    Args:
      language_model: a `LanguageModel`, or any other `lm_eval.api.model.LM`.
      opened: the tasks.
      options: how they are run.

    Returns:
      The scores.
    """
    from lm_eval.evaluator import evaluate

    samples = {}
    sizes = _sizes(opened, options)
    for name, task in opened.tasks.items():
        choice = opened.choices[name]
        shots = options.num_fewshot if choice.shots is None else choice.shots
        own = task.get_config("num_fewshot")
        if own is None or (shots is not None and own != 0):
            task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=options.seed)
        samples[name] = range(sizes[name])
    loaded = {"tasks": opened.tasks, "groups": opened.groups, "group_map": opened.group_map}
    with _quiet():
        found = evaluate(
            lm=language_model,
            task_dict=loaded,
            samples=samples,
            bootstrap_iters=1000,
            system_instruction=options.system_instruction,
            apply_chat_template=options.apply_chat_template,
            fewshot_as_multiturn=options.apply_chat_template,
        )
    return Results.of(found)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's log, its progress bars and those of its data from the screen."""
    from tqdm import tqdm

    log = logging.getLogger("lm_eval")
    level, disabled = log.level, tqdm.__init__
    log.setLevel(logging.ERROR)
    import datasets

    bars = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()

    def silent(self: Any, *arguments: Any, **keywords: Any) -> None:
        disabled(self, *arguments, **{**keywords, "disable": True})

    tqdm.__init__ = silent  # type: ignore[method-assign]
    try:
        yield
    finally:
        log.setLevel(level)
        tqdm.__init__ = disabled  # type: ignore[method-assign]
        if bars:
            datasets.enable_progress_bars()

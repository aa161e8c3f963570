"""Requests of benchmark tasks answered here and by lm-evaluation-harness's own Hugging Face backend: equal, and how fast.

    python benchmarks/backends.py --model FOLDER --tasks mmlu:114@5 truthfulqa_mc1:100 --benchmark-files DIR

Both read the same folder, in float32, and get the same requests, task by task; each runs in a process of its own, one after
the other, and in turn with `--repeat`. Per task: the requests, the largest deviation of a log-likelihood in nats, how many
greedy flags or texts differ, whether the scores are equal, and for each backend the wall and CPU seconds from the first
request to the last answer, compilation included. `--batch` is the batch size of both, and `--threads 1` limits both to one
thread. Needs torch and lm-eval.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BACKENDS = ("here", "transformers")


class Recorder:
    """A backend that keeps what it is asked and answers, and how long that takes.

    Attributes:
      answers: by (method, arguments), what was answered.
      seconds: wall seconds of all answers.
      cpu_seconds: of the process in that time, all threads.
    """

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.answers: dict[tuple[str, str], Any] = {}
        self.seconds = self.cpu_seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        """The backend's own, recorded if it answers requests."""
        found = getattr(self.backend, name)
        if name not in ("loglikelihood", "generate_until"):
            return found

        def recorded(requests: list[Any], **options: Any) -> Any:
            began, used = time.perf_counter(), time.process_time()
            answers = found(requests, **options)
            self.seconds += time.perf_counter() - began
            self.cpu_seconds += time.process_time() - used
            self.answers |= {(name, str(request.args)): answer for request, answer in zip(requests, answers, strict=True)}
            return answers

        return recorded


def open_backend(name: str, folder: str | Path, batch: int = 4) -> Recorder:
    """A backend of a model's folder in float32, on the CPU.

    Args:
      name: one of `BACKENDS`.
      folder: in Hugging Face's form.
      batch: most sequences in a pass of transformers, and most texts drawn at once here.
    """
    if name == "transformers":
        from lm_eval.models.huggingface import HFLM

        return Recorder(
            HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=batch, softmax_dtype="float32")
        )
    import jax

    from devft_jax.harness.language_model import LanguageModel
    from devft_jax.models.huggingface.end_tokens import end_token_ids
    from devft_jax.models.huggingface.reading import load_pretrained

    model = load_pretrained(Path(folder), dtype="float32")
    ends = end_token_ids(Path(folder), model.tokenizer)
    return Recorder(LanguageModel(model, eos_ids=ends, devices=jax.devices()[:1], batch=batch))


def answer(arguments: argparse.Namespace) -> None:
    """Answer every task with one backend and write answers, scores and times."""
    from devft_jax.harness.tasks import TaskOptions, open_tasks, run_tasks

    if arguments.threads and arguments.backend == "transformers":
        import torch

        torch.set_num_threads(arguments.threads)
    backend = open_backend(arguments.backend, arguments.model, arguments.batch)
    found: dict[str, Any] = {}
    for name in arguments.tasks:
        opened = open_tasks([name], benchmark_files=arguments.benchmark_files)
        for task in opened.tasks.values():
            if arguments.max_tokens and task.OUTPUT_TYPE == "generate_until":
                task.set_config(key="generation_kwargs", value={"max_gen_toks": arguments.max_tokens}, update=True)
        backend.answers, backend.seconds, backend.cpu_seconds = {}, 0.0, 0.0
        results = run_tasks(backend, opened, TaskOptions())
        found[name] = {
            "answers": [[method, asked, given] for (method, asked), given in backend.answers.items()],
            "scores": [[score.task, score.metric, score.filter, score.value] for score in results.scores],
            "wall": backend.seconds,
            "cpu": backend.cpu_seconds,
        }
        print(f"{arguments.backend}: {name}: {len(backend.answers)} requests, {backend.seconds:.1f} s", file=sys.stderr)
    Path(arguments.write).write_text(json.dumps(found))


def compare(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """How the answers to one task differ.

    Args:
      mine: of `answer`, here.
      theirs: by transformers, to the same requests.

    Returns:
      The number of requests, the largest deviation in nats (None for texts), the number of greedy flags or texts that
      differ, and whether the scores are equal.

    Raises:
      ValueError: the requests differ.
    """
    first = {(method, asked): given for method, asked, given in mine["answers"]}
    second = {(method, asked): given for method, asked, given in theirs["answers"]}
    if first.keys() != second.keys():
        raise ValueError("the backends were asked different requests")
    pairs = [(first[key], second[key]) for key in first]
    numbers = [(a, b) for a, b in pairs if not isinstance(a, str)]
    texts = [(a, b) for a, b in pairs if isinstance(a, str)]
    return {
        "requests": len(pairs),
        "deviation": max((abs(a[0] - b[0]) for a, b in numbers), default=None),
        "different": sum(a[1] != b[1] for a, b in numbers) + sum(a != b for a, b in texts),
        "scores equal": all(
            a[:3] == b[:3] and (a[3] == b[3] or abs(a[3] - b[3]) < 1e-4)
            for a, b in zip(mine["scores"], theirs["scores"], strict=True)
        ),
    }


def run_backend(arguments: argparse.Namespace, name: str, path: Path) -> dict[str, Any]:
    """The answers of a backend in a process of its own, without compiled programs or finished requests of earlier runs."""
    words = [sys.executable, __file__, "--backend", name, "--write", str(path), "--model", arguments.model]
    words += ["--tasks", *arguments.tasks, "--batch", str(arguments.batch), "--max-tokens", str(arguments.max_tokens)]
    words += ["--threads", str(arguments.threads)]
    if arguments.benchmark_files:
        words += ["--benchmark-files", arguments.benchmark_files]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    if arguments.threads == 1:
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        environment |= {"XLA_FLAGS": flags, "OMP_NUM_THREADS": "1"}
    subprocess.run(words, env=environment, check=True)
    return json.loads(path.read_text())


def table(rows: list[dict[str, Any]]) -> str:
    """The measurements in Markdown."""
    head = [
        "task",
        "requests",
        "deviation, nats",
        "different",
        "scores",
        "here, s (CPU)",
        "transformers, s (CPU)",
        "ratio (CPU)",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        times = [f"{row[f'wall {name}']:.1f} ({row[f'cpu {name}']:.1f})" for name in BACKENDS]
        lines.append(
            [
                row["task"],
                str(row["requests"]),
                "texts" if row["deviation"] is None else f"{row['deviation']:.1e}",
                str(row["different"]),
                "equal" if row["scores equal"] else "differ",
                *times,
                f"{row['wall ratio']:.2f} ({row['cpu ratio']:.2f})",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Read the flags, run the backends in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a model in Hugging Face's form")
    parser.add_argument("--tasks", nargs="+", required=True, help="as `devft evaluate` takes them, each timed by itself")
    parser.add_argument("--benchmark-files", help="folder of the benchmarks' original files")
    parser.add_argument("--batch", type=int, default=4, help="batch size of both")
    parser.add_argument("--max-tokens", type=int, default=0, help="most tokens of a text; 0 for the task's own limit")
    parser.add_argument("--threads", type=int, default=0, help="1 for one thread each; 0 for all")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions, in turn; times are medians")
    parser.add_argument("--out", help="file for the measurements as JSON")
    parser.add_argument("--backend", choices=BACKENDS, help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.backend:
        return answer(arguments)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in BACKENDS}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeat):
            for name in BACKENDS:
                runs[name].append(run_backend(arguments, name, Path(folder) / "answers.json"))
    rows = []
    for task in arguments.tasks:
        row = compare(runs["here"][0][task], runs["transformers"][0][task])
        for unit in ("wall", "cpu"):
            for name in BACKENDS:
                row[f"{unit} {name}"] = statistics.median(run[task][unit] for run in runs[name])
            row[f"{unit} ratio"] = statistics.median(
                theirs[task][unit] / mine[task][unit]
                for mine, theirs in zip(runs["here"], runs["transformers"], strict=True)
            )
        rows.append({"task": task, **row})
    print(table(rows))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""The microtasks as a task of the harness: exact match of the answer, greedily decoded."""

import json
import shutil
from pathlib import Path

import yaml

from devft_jax.data.microtasks.generate import generate
from devft_jax.data.prompts import prompt_text
from devft_jax.files.writing import temporary_name
from devft_jax.storage.digests import new_digest

MICROTASKS = "microtasks"
ITEMS = 320
"""Problems of the test split, twenty of each category."""


def microtask_folder(cache: Path, template: str) -> Path:
    """A folder with the microtasks' YAML and problems, made where it is not there.

    Args:
      cache: where folders of tasks are kept.
      template: the prompt template; `chat` uses the tokenizer's own.
    """
    wording = "completion" if template == "chat" else template
    lines = [
        json.dumps({"prompt": prompt_text(record, wording), "answer": record.output, "category": record.category})
        for record in generate("test", ITEMS)
    ]
    content = "\n".join(lines) + "\n"
    folder = cache / f"microtasks-{new_digest(content.encode()).hexdigest()}"
    if folder.is_dir():
        return folder
    settings = {
        "task": MICROTASKS,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "problems.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "num_fewshot": 0,
        "generation_kwargs": {"until": [], "max_gen_toks": 48, "do_sample": False},
        "filter_list": [{"name": "none", "filter": [{"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(folder)
    partial.mkdir()
    (partial / "problems.jsonl").write_text(content, encoding="utf-8")
    (partial / "microtasks.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    try:
        partial.rename(folder)
    except OSError:
        # Another process was faster.
        shutil.rmtree(partial, ignore_errors=True)
    return folder

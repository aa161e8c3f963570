"""A task of the harness in local files."""

import json
from itertools import pairwise
from pathlib import Path


def write_task(folder: Path) -> str:
    """Write a task of twelve questions and give the path of its YAML."""
    questions = [{"question": f"{a} {b}", "answer": index % 2} for index, (a, b) in enumerate(pairwise("abcdefghijklm"))]
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))
    (folder / "own.yaml").write_text(
        "task: own\noutput_type: multiple_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: [x y, z]\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n'
    )
    return str(folder / "own.yaml")

"""Every request's answer equals that of lm-evaluation-harness's own Hugging Face backend, also of a merged export.

Small enough for every day: `DEVFT_PARITY_ITEMS` raises the number of items of each task, and `DEVFT_SMOLLM2` names a folder
of SmolLM2-135M-Instruct, which is too large to come with the data.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch", reason="parity needs torch: pip install 'devft-jax[parity]'")
pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")

import torch

from devft_jax.benchmarking.evaluate import evaluate
from devft_jax.benchmarking.options import BenchmarkOptions
from devft_jax.commands.cli import run_command
from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.harness.tasks import TaskOptions, open_tasks, run_tasks
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.huggingface.reading import load_pretrained
from tests.benchmarks.conftest import BENCHMARKS  # noqa: F401  # its import puts the benchmarks on the path
from tests.conftest import WORDS
from tests.models.conftest import random_adapter
from tests.parity.test_transformers import random_model

from backends import open_backend  # isort: skip

pytestmark = pytest.mark.parity

ITEMS = int(os.environ.get("DEVFT_PARITY_ITEMS", "3"))
MULTIPLE_CHOICE = (
    *("truthfulqa_mc1", "truthfulqa_mc2", "arc_easy", "piqa"),
    *(f"mmlu_{subject}" for subject in ("anatomy", "marketing", "high_school_geography")),
)
WITH_REASONS = ("bbh_cot_fewshot_boolean_expressions",)
INSTRUCTIONS = ("ifeval",)


def backends(folder):
    """The harness's own backend and ours, of one folder, recorded."""
    return open_backend("transformers", folder), open_backend("here", folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, word_tokenizer):
    """A folder of random weights with large logits, and a tokenizer that puts a bos before a text."""
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = random_model(num_key_value_heads=2, max_position_embeddings=48)
    model.save_pretrained(folder)
    word_tokenizer(words=WORDS[:98]).save_pretrained(folder)
    return folder


def requests(*arguments):
    return [SimpleNamespace(args=each, task_name="") for each in arguments]


def assert_same(found, expected, atol=1e-4):
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], atol=atol)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_requests_of_every_kind(tiny):
    """Shared and cut contexts, none, blanks at the end, one token or several, a continuation that begins another."""
    theirs, ours = backends(tiny)
    long = " ".join(WORDS[number % 90] for number in range(60))
    contexts = ["a b c d", "a b c d e", "a b c ", "", long, long + " 3"]
    pairs = [(context, f" {answer}") for context in contexts for answer in ("x", "y", "z", "x y", "x y 1 2 3")]
    assert_same(ours.loglikelihood(requests(*pairs)), theirs.loglikelihood(requests(*pairs), disable_tqdm=True))
    texts = [("a b c",), (long,), (long + " " + long,)]
    found, expected = ours.loglikelihood_rolling(requests(*texts)), theirs.loglikelihood_rolling(requests(*texts))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_greedy_texts(tiny):
    theirs, ours = backends(tiny)
    long = " ".join(WORDS[number % 90] for number in range(60))
    until = theirs.generate_until(requests(("a b", {"until": [], "max_gen_toks": 12})), disable_tqdm=True)[0].split()[5]
    prompts = [
        (prompt, {"until": stop, "max_gen_toks": size, "do_sample": False})
        for prompt in ("a b", "c", long)
        for stop, size in ((["</s>"], 20), ([until], 12), ([], 12))
    ]
    found = ours.generate_until(requests(*prompts))
    assert found == theirs.generate_until(requests(*prompts), disable_tqdm=True)
    assert len(set(found)) > 4


@pytest.fixture(scope="module", params=["proxy-16l", "smollm2"])
def pretrained(request, shared):
    if request.param == "proxy-16l":
        return shared / "models" / "proxy-16l"
    folder = os.environ.get("DEVFT_SMOLLM2")
    if folder is None:
        pytest.skip("DEVFT_SMOLLM2 names no folder of SmolLM2-135M-Instruct")
    return Path(folder)


def skip_without_punkt() -> None:
    """IFEval's checks read sentences with data of NLTK that no package brings."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("IFEval needs NLTK's punkt_tab, which is not on this machine")


@pytest.mark.parametrize(
    "names", [MULTIPLE_CHOICE, WITH_REASONS, INSTRUCTIONS], ids=["multiple choice", "with reasons", "instructions"]
)
def test_benchmarks(pretrained, names, shared, tmp_path_factory):
    """Log-likelihoods within 1e-3 nats, greedy texts identical, scores equal; five worked examples before MMLU."""
    if names is INSTRUCTIONS:
        skip_without_punkt()
    theirs, ours = backends(pretrained)
    cache = tmp_path_factory.mktemp("benchmarks")
    found = []
    for backend in (theirs, ours):
        chosen = [f"{name}:{ITEMS}" + ("@5" if name.startswith("mmlu") else "") for name in names]
        opened = open_tasks(chosen, benchmark_files=shared / "data" / "benchmarks", cache=cache)
        for task in opened.tasks.values():
            if task.OUTPUT_TYPE == "generate_until" and ITEMS < 20:
                # As many tokens as a text needs would take minutes.
                task.set_config(key="generation_kwargs", value={"max_gen_toks": 24}, update=True)
        found.append(run_tasks(backend, opened, TaskOptions()))
    assert theirs.answers.keys() == ours.answers.keys()
    assert len(ours.answers) >= ITEMS * len(names)
    pairs = [(theirs.answers[key], ours.answers[key]) for key in ours.answers]
    if names is not MULTIPLE_CHOICE:
        assert all(expected == answer for expected, answer in pairs)
    else:
        deviation = max(abs(expected[0] - answer[0]) for expected, answer in pairs)
        print(f"{pretrained}: {len(pairs)} requests, largest deviation {deviation:.2e} nats")
        assert deviation < 1e-3
        assert all(expected[1] == answer[1] for expected, answer in pairs)
    for expected, score in zip(found[0].scores, found[1].scores, strict=True):
        assert (score.task, score.metric, score.items) == (expected.task, expected.metric, expected.items)
        assert score.value == pytest.approx(expected.value, abs=1e-4)


def test_a_merged_export_has_the_scores_of_its_run(shared, tmp_path):
    """`devft export --form merged` loads in the harness's own backend, which scores it as we score the run."""
    base, run, merged = shared / "models" / "proxy-16l", tmp_path / "run", tmp_path / "merged"
    export_peft(random_adapter(load_pretrained(base).config, ("q", "v")), run / "adapter")
    (run / "config.json").write_text(
        json.dumps(to_plain(RunConfig(model=str(base), template="completion", rank=3, alpha=6.0)))
    )
    assert run_command(["export", str(run), "--form", "merged", "--dtype", "float32", "--out", str(merged)]) == 0
    names, files = (f"truthfulqa_mc2:{ITEMS}", f"piqa:{ITEMS}"), shared / "data" / "benchmarks"
    untuned, ours = evaluate([str(run)], BenchmarkOptions(tasks=names, benchmark_files=str(files), compare=True))
    found = run_tasks(open_backend("transformers", merged), open_tasks(names, benchmark_files=files), TaskOptions())
    assert found.items.keys() == ours.results.items.keys()
    for key, values in ours.results.items.items():
        assert found.items[key] == pytest.approx(values, abs=1e-3)
    for score in ours.results.scores:
        assert found.find(score.task, score.metric, score.filter).value == pytest.approx(score.value, abs=1e-3)
    mc2 = [results.find("truthfulqa_mc2", "acc").value for results in (ours.results, untuned.results)]
    assert abs(mc2[0] - mc2[1]) > 0.01

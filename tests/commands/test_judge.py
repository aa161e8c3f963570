"""`devft judge`: models answer, an endpoint or a function judges, a folder holds everything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.judging import endpoint as endpoint_module
from tests.conftest import REPOSITORY
from tests.inference.folders import write_folders
from tests.judging.files import answer_rows, write_benchmark, write_lines
from tests.judging.server import endpoint, fails

KEY = "sk-secret-of-the-test"


@pytest.fixture(scope="module")
def folders(tmp_path_factory, word_tokenizer):
    return write_folders(tmp_path_factory.mktemp("folders"), word_tokenizer)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a benchmark and the answers of two other models."""
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    write_benchmark(tmp_path)
    write_lines(tmp_path / "one.jsonl", answer_rows("one"))
    write_lines(tmp_path / "two.jsonl", answer_rows("two", lambda question, turn: f"better {turn}"))
    return tmp_path


def judge(*words):
    return run_command(["judge", *words, "--questions", "question.jsonl", "--out", "out"])


def results(place):
    return json.loads((place / "out" / "results.json").read_text())


def by_content(body):
    """A judge that prefers what says "better", and rates it higher."""
    text = body["messages"][-1]["content"]
    if "[A]" in text:
        return "[[A]]" if "better" in text[text.index("[A]") : text.index("[/A]")] else "[[B]]"
    return "Rating: [[9]]" if "better" in text else "Rating: [[4]]"


def test_answers_of_files_are_rated_and_compared_and_the_key_is_nowhere(place, capsys):
    with endpoint(judge=by_content) as fake:
        words = ["one.jsonl", "two.jsonl", "--mode", "both", "--endpoint", fake.url, "--judge-model", "org/judge"]
        assert judge(*words, "--price-in", "10", "--price-out", "30", "--concurrency", "3") == 0
        said = capsys.readouterr()
        assert len(fake.requests) == 14 + 14
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in fake.headers)
        # The same again asks for nothing, and says the same.
        assert judge(*words, "--price-in", "10", "--price-out", "30") == 0
        assert len(fake.requests) == 28
        assert capsys.readouterr().out == said.out
    assert "judge org/judge: 28 requests, 2,800 tokens read, 280 written, cost 0.0364" in said.out
    found = results(place)
    assert found["judge"] == "org/judge"
    overall = {entry["turn"]: entry["models"] for entry in found["results"]["ratings"] if entry["category"] == "all"}
    assert overall["both"]["one"]["value"] == 4
    assert overall["both"]["two"] == {"value": 9, "error": 0, "low": None, "high": None, "questions": 4}
    [games] = [
        each["models"]["two"] for each in found["results"]["games"] if (each["category"], each["turn"]) == ("all", "both")
    ]
    assert (games["wins"], games["ties"], games["losses"], games["inconsistent"]) == (7, 0, 0, 0)
    assert found["spent"]["requests"] == 28
    assert {path.name for path in (place / "out" / "model_judgment").iterdir()} == {
        "org_judge_single.jsonl",
        "org_judge_pair.jsonl",
    }
    written = [path for path in (place / "out").rglob("*") if path.is_file()]
    assert not [path for path in written if KEY in path.read_text()]
    assert KEY not in said.out + said.err


def test_fastchats_program_reads_the_judgements(place):
    """What its show_result.py does with the files, on the same means and wins."""
    with endpoint(judge=by_content) as fake:
        words = ["one.jsonl", "two.jsonl", "--mode", "both", "--endpoint", fake.url, "--judge-model", "gpt-4"]
        assert judge(*words) == 0
    ratings = pandas.read_json(place / "out" / "model_judgment" / "gpt-4_single.jsonl", lines=True)
    ratings = ratings[["model", "score", "turn"]]
    means = ratings[ratings["score"] != -1].groupby(["model", "turn"]).mean()["score"]
    assert means.to_dict() == {("one", 1): 4, ("one", 2): 4, ("two", 1): 9, ("two", 2): 9}
    pairs = pandas.read_json(place / "out" / "model_judgment" / "gpt-4_pair.jsonl", lines=True)
    assert set(zip(pairs["model_1"], pairs["model_2"], pairs["g1_winner"], pairs["g2_winner"], strict=True)) == {
        ("two", "one", "model_1", "model_1")
    }


def test_models_answer_and_a_function_judges(place, folders, monkeypatch, capsys):
    (place / "my_judge_of_a_test.py").write_text(
        "def rate(case):\n    return min(10, 1 + len(case.answers[0][case.turn - 1].split()))\n"
    )
    monkeypatch.syspath_prepend(str(place))
    words = [folders["run"], folders["adapter"], folders["model"], "--names", "run,adapter,base", "--max-new-tokens", "6"]
    words += ["--model", folders["model"], "--template", "completion"]
    assert judge(*words) == 0
    said = capsys.readouterr().out
    assert "answered; judge them by --endpoint URL" in said
    assert results(place)["results"] is None
    files = sorted((place / "out" / "model_answer").iterdir())
    assert [file.name for file in files] == ["adapter.jsonl", "base.jsonl", "run.jsonl"]
    # The run's adapter on the run's base in the run's template, by either way.
    texts = [[json.loads(line)["choices"] for line in file.read_text().splitlines()] for file in files]
    assert texts[0] == texts[2] != texts[1]
    before = [file.read_bytes() for file in files]
    assert judge(*words, "--judge", "my_judge_of_a_test:rate") == 0
    assert [file.read_bytes() for file in files] == before
    assert "Rating, 1 to 10, both turns" in capsys.readouterr().out
    assert (place / "out" / "model_judgment" / "my_judge_of_a_test_rate_single.jsonl").is_file()


def test_a_model_without_a_template_says_so(place, folders, capsys):
    assert judge(folders["model"], "--names", "base") == 2
    assert "has no chat template that words a conversation, and is no run that has a template of its own; give the" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["one.jsonl", "one.jsonl"], "two models are called 'one'; give each a name of its own with --names."),
        (["one.jsonl", "--names", "a,b"], "names gives 2 names to 1 models; give one to each."),
        (["one.jsonl", "--names", "a/b"], "the name 'a/b' is no name of a file"),
        (["one.jsonl", "--mode", "pairwise"], "mode pairwise compares models and there is one"),
        (["one.jsonl", "two.jsonl", "--baseline", "twp"], "baseline 'twp' is none of the models; did you mean 'two'?"),
        (["absent.jsonl"], "the answers absent.jsonl cannot be read"),
        (["one.jsonl", "--model", "x"], "model x is for runs and adapters, and none of the models is one; leave it out."),
        (["bundled", "--round", "2"], "round 2 is for runs, and none of the models is one; leave it out."),
        (["one.jsonl", "--judge", "a:b", "--endpoint", "http://x/v1"], "judge and endpoint are two judges"),
        (["one.jsonl", "--judge", "a"], "judge 'a' is no name that imports"),
        (["one.jsonl", "--judge-model", "gpt-4"], "judge_model gpt-4 belongs to an endpoint"),
        (["one.jsonl", "--endpoint", "http://x/v1"], "endpoint needs the name of the model that judges there"),
        (["one.jsonl", "--endpoint", "x", "--judge-model", "y"], "endpoint 'x' is no address of HTTP"),
        (
            ["one.jsonl", "--judge-prompts", "none.jsonl", "--judge", "os.path:basename"],
            "the judge prompts none.jsonl cannot be read",
        ),
        (["one.jsonl", "--limit", "0"], "limit 0 is not positive"),
        (["one.jsonl", "--stop", ""], "stop holds an empty text"),
        (["one.jsonl", "--temperatures", "warm"], "temperatures"),
        (["one.jsonl", "--concurrency", "0"], "concurrency 0 is not positive"),
        ([], "devft judge needs WHAT"),
    ],
)
def test_a_mistake_is_one_sentence_and_begins_nothing(place, capsys, words, sentence):
    assert judge(*words) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (place / "out").exists()


def test_a_missing_reference_or_prompt_file_is_said_before_anything_is_asked(place, capsys):
    (place / "reference_answer_gpt-4.jsonl").unlink()
    with endpoint() as fake:
        words = ["one.jsonl", "--endpoint", fake.url, "--judge-model", "x"]
        assert judge(*words) == 2
        assert "question 111 (math) is judged beside a reference answer to every turn" in capsys.readouterr().err
        (place / "judge_prompts.jsonl").unlink()
        assert judge(*words) == 2
        assert "there is no judge_prompts.jsonl beside the questions; name FastChat's with --judge-prompts." in (
            capsys.readouterr().err
        )
        assert not fake.requests


def test_a_wrong_key_keeps_what_was_judged(place, capsys):
    with endpoint() as fake:
        words = ["one.jsonl", "--endpoint", fake.url, "--judge-model", "x", "--concurrency", "1"]
        fake.judge = lambda body: fake.script.append(fails(401, f"bad key {KEY}")) or "[[5]]"
        assert judge(*words) == 2
        said = capsys.readouterr().err
        assert said.count("devft: ") == 1
        assert "answered 401: bad key [key], and it does not accept the key" in said
        assert len((place / "out" / "model_judgment" / "x_single.jsonl").read_text().splitlines()) == 1
        fake.judge = lambda body: "[[5]]"
        assert judge(*words) == 0
        assert len(fake.requests) == 8


def test_an_endpoint_that_goes_down_keeps_what_was_judged(place, capsys):
    with endpoint() as fake:
        words = ["one.jsonl", "--endpoint", fake.url, "--judge-model", "x", "--concurrency", "1", "--retries", "1"]
        fake.judge = lambda body: fake.script.extend([fails(503)] * 2) or "[[5]]"
        assert judge(*words) == 1
        said = capsys.readouterr().err
        assert said.count("devft: ") == 1
        assert "does not answer (503) after 2 attempts; what was judged is kept: start the same command again" in said
        assert len((place / "out" / "model_judgment" / "x_single.jsonl").read_text().splitlines()) == 1
        fake.judge = lambda body: "[[5]]"
        assert judge(*words) == 0
        assert len(fake.requests) == 3 + 6


def test_a_folder_of_something_else_is_not_written_to(place, capsys):
    (place / "out").mkdir()
    (place / "out" / "results.json").write_text('{"mine": 1}')
    assert judge("one.jsonl", "--judge", "os.path:basename") == 2
    assert "holds something else (results.json)" in capsys.readouterr().err
    assert (place / "out" / "results.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_process_that_is_stopped_or_killed_goes_on_where_it_was(place, number):
    """With real signals: no case that was kept is judged again."""
    with endpoint() as fake:
        # Quick at first, then so slow that the signal comes in time however busy the machine is.
        fake.judge = lambda body: time.sleep(0.0 if len(fake.requests) <= 6 else 1.5) or "[[5]]"
        words = ["judge", "one.jsonl", "two.jsonl", "--endpoint", fake.url, "--judge-model", "x", "--concurrency", "2"]
        command = [sys.executable, "-m", "devft_jax", *words, "--questions", "question.jsonl", "--out", "out"]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        lines = place / "out" / "model_judgment" / "x_single.jsonl"
        while not lines.exists() or lines.read_text().count("\n") < 3:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
        if number == signal.SIGTERM:
            assert "stopped; what was answered and judged is kept" in said
        kept, asked = lines.read_text().count("\n"), len(fake.requests)
        assert 3 <= kept < 14
        if number == signal.SIGTERM:
            assert asked == kept
        fake.judge = lambda body: "[[5]]"
        assert judge(*words[1:]) == 0
        assert len(fake.requests) == asked + 14 - kept
        assert len(lines.read_text().splitlines()) == 14


def test_the_help_names_every_option(capsys):
    with pytest.raises(SystemExit):
        run_command(["judge", "--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: devft judge WHAT ... [options]")
    for option in (
        "--questions",
        "--endpoint",
        "--judge-model",
        "--key-variable",
        "--price-in",
        "--verdict-tries",
        "--judge ",
    ):
        assert option in said


@pytest.mark.slow
def test_the_originals_are_answered_by_the_bundled_model(shared, tmp_path):
    """A question of each category of both benchmarks, the second turn behind the first answer."""
    for name, count in (("mt-bench", 8), ("vicuna-bench", 9)):
        questions = shared / "data" / "benchmarks" / name / "question.jsonl"
        out = tmp_path / name
        words = ["judge", "bundled", "--template", "alpaca", "--limit", "1", "--max-new-tokens", "8"]
        assert run_command([*words, "--questions", str(questions), "--out", str(out)]) == 0
        rows = [json.loads(line) for line in Path(out, "model_answer", "bundled.jsonl").read_text().splitlines()]
        assert len(rows) == count

"""`devft generate`: which model answers, how prompts come in and answers go out."""

import io
import json
import sys
from pathlib import Path

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.inference import answers, respondent
from devft_jax.inference.options import ModelOptions
from devft_jax.inference.prompts import to_record
from devft_jax.inference.respondent import open_respondent
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.peft.writing import export_peft
from tests.inference.folders import MODEL, write_folders
from tests.models.conftest import random_adapter


@pytest.fixture(scope="module")
def folders(tmp_path_factory, word_tokenizer):
    return write_folders(tmp_path_factory.mktemp("folders"), word_tokenizer)


def ask(capsys, *words):
    """Exit code and standard output of `devft generate` with short answers."""
    code = run_command(["generate", *words, "--max-new-tokens", "6"])
    return code, capsys.readouterr().out


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_adapters_folder_is_asked_with_the_base_that_it_names(folders, tmp_path, capsys):
    named, nameless = tmp_path / "named", tmp_path / "nameless"
    export_peft(random_adapter(MODEL, ("q", "v")), named, base_model=folders["model"])
    export_peft(random_adapter(MODEL, ("q", "v")), nameless)
    expected = ask(capsys, folders["model"], "--adapter", str(named), "--prompt", "a b c")
    assert ask(capsys, str(named), "--prompt", "a b c") == expected
    assert ask(capsys, str(named), "--prompt", "a b c", "--compare")[0] == 0
    assert ask(capsys, str(nameless), "--model", folders["model"], "--prompt", "a b c") == expected
    assert run_command(["generate", str(nameless), "--prompt", "a"]) == 2
    assert "does not name the adapter's base; name it with --model" in capsys.readouterr().err


EARLIER = '{"instruction": "an earlier question", "input": "", "prompt": "", "completion": "precious"}\n'


@pytest.mark.parametrize("content", ["precious\n", '{"model": "x"}', "\n", "\0\1"])
def test_a_file_that_holds_no_answers_is_not_replaced(folders, tmp_path, capsys, content):
    """Such as a run's own config.json."""
    out = tmp_path / "config.json"
    out.write_text(content)
    assert run_command(["generate", folders["run"], "--prompt", "a", "--out", str(out)]) == 2
    assert f"out {out} holds something other than answers of `devft generate`" in capsys.readouterr().err
    assert out.read_text() == content


def test_a_question_that_cannot_be_answered_leaves_the_answers_file_as_it_was(folders, tmp_path, capsys):
    """Every prompt is looked at before the first is answered: an older file stays, a new one is not begun."""
    prompts, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    prompts.write_text("a\n" * 20 + "a " * 80)
    words = ["generate", folders["run"], "--file", str(prompts), "--out", str(out)]
    assert run_command(words) == 2
    assert "prompt 21 has" in capsys.readouterr().err
    assert not out.exists()
    out.write_text(EARLIER)
    assert run_command(words) == 2
    assert out.read_text() == EARLIER


def test_answers_of_a_short_model_need_no_option(folders, capsys):
    assert run_command(["generate", folders["run"], "--prompt", "a b c"]) == 0
    assert capsys.readouterr().out.strip()


def test_one_prompt_gives_the_answer_alone(capsys, folders):
    code, text = ask(capsys, folders["run"], "--prompt", "a b c")
    assert code == 0
    respondent = open_respondent(folders["run"], ModelOptions())
    [answer] = respondent.answer([to_record("a b c", "here")], GenerationOptions(max_new_tokens=6))
    assert text == f"{answer.text}\n"
    assert answer.text


def test_a_run_is_its_model_with_its_adapter(capsys, folders):
    _, run = ask(capsys, folders["run"], "--prompt", "a b c")
    _, both = ask(capsys, folders["model"], "--adapter", folders["adapter"], "--prompt", "a b c")
    _, bare = ask(capsys, folders["model"], "--prompt", "a b c")
    assert run == both != bare


def test_comparing_shows_both_under_headings(capsys, folders, tmp_path):
    out = tmp_path / "answers.jsonl"
    _, text = ask(capsys, folders["run"], "--prompt", "a b c", "--compare", "--out", str(out))
    _, bare = ask(capsys, folders["model"], "--prompt", "a b c")
    _, tuned = ask(capsys, folders["run"], "--prompt", "a b c")
    assert text == f"--- base\n{bare}--- adapter\n{tuned}\n"
    [row] = rows(out)
    assert (row["base"]["completion"], row["adapter"]["completion"]) == (bare.strip(), tuned.strip())
    assert set(row["base"]) == {"completion", "finish_reason", "tokens"}


def test_prompts_of_files(capsys, folders, tmp_path):
    text, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    text.write_text("a b\n\nc d e\r\n")
    records = [{"instruction": "a b"}, {"prompt": "c d", "output": "f"}, {"instruction": "c", "context": "d", "input": None}]
    lines.write_text("\n".join(map(json.dumps, records)))
    out = tmp_path / "answers.jsonl"
    code, shown = ask(capsys, folders["run"], "--file", str(text), "--out", str(out))
    assert code == 0
    answers = rows(out)
    assert [row["instruction"] for row in answers] == ["a b", "c d e"]
    assert shown.startswith(f"--- prompt 1\na b\n--- answer\n{answers[0]['completion']}\n\n--- prompt 2\n")
    assert all(len(row["tokens"]) == 6 and row["finish_reason"] == "length" for row in answers)
    ask(capsys, folders["run"], "--file", str(lines), "--out", str(out))
    again = rows(out)
    assert again[0] == answers[0]
    assert [row["prompt"] for row in again] == ["a b", "c d", "c\nd"]
    assert (again[2]["instruction"], again[2]["input"]) == ("c", "d")


def test_prompts_are_never_replaced_by_their_answers(capsys, folders, tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a b")
    assert ask(capsys, folders["run"], "--file", str(path), "--out", str(tmp_path / "." / "prompts.txt"))[0] == 2
    assert path.read_text() == "a b"


def test_lines_of_a_pipe(capsys, folders, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a b c\n\n"))
    _, piped = ask(capsys, folders["run"])
    _, asked = ask(capsys, folders["run"], "--prompt", "a b c")
    assert piped == asked
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert ask(capsys, folders["run"])[0] == 2


def test_input_and_template_word_the_prompt(capsys, folders, tmp_path):
    out = tmp_path / "answers.jsonl"
    ask(capsys, folders["run"], "--prompt", "a", "--input", "b", "--template", "alpaca_short", "--out", str(out))
    assert rows(out)[0]["prompt"] == "### Instruction:\na\n\n### Input:\nb\n\n### Response:\n"


def test_draws_follow_the_number_of_the_prompt(capsys, folders, tmp_path):
    """Answers do not depend on how many prompts are worked on together."""
    path, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    path.write_text("a b\n" * 5)
    words = (folders["run"], "--file", str(path), "--out", str(out), "--temperature", "1", "--generation-batch", "2")
    ask(capsys, *words)
    together = rows(out)
    assert len({tuple(row["tokens"]) for row in together}) > 1
    ask(capsys, *words[:-1], "3")
    assert rows(out) == together


def test_a_packed_base(capsys, folders):
    code, text = ask(capsys, folders["run"], "--prompt", "a b c", "--quantization", "int8", "--dtype", "bfloat16")
    assert code == 0
    assert text.strip()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--prompt", "a", "--file", "x"], "prompt and file exclude each other"),
        (["run", "--file", "/nowhere.txt"], "file /nowhere.txt does not exist"),
        (["run", "--input", "a"], "input is given without a prompt"),
        (["model", "--prompt", "a", "--compare"], "model is neither a run's folder nor an adapter's"),
        (["model", "--prompt", "a", "--adapter", "/nowhere"], "/nowhere"),
        (["run", "--prompt", "a", "--template", "x"], "template 'x' is unknown"),
        (["run", "--prompt", "a", "--top-p", "0"], "top_p 0.0 is outside"),
        (["run", "--prompt", "a " * 60], "prompt 1 has 61 tokens"),
        (["run", "--prompt", "a", "--out", "/nowhere/out.jsonl"], "out /nowhere/out.jsonl cannot be written"),
        (["/nowhere/at/all", "--prompt", "a"], "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, folders, words, sentence):
    assert run_command(["generate", folders.get(words[0], words[0]), *words[1:], "--max-new-tokens", "6"]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("devft: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["--prompt", "a \udcff"], "prompt"),
        (["--prompt", "a", "--input", "\ud800"], "input"),
        (["--prompt", "a", "--stop", "\udcff"], "stop"),
    ],
)
def test_prompts_that_are_no_text(capsys, folders, words, place):
    assert run_command(["generate", folders["run"], *words]) == 2
    error = capsys.readouterr().err
    assert "not" in error
    assert "UTF-8" in error
    assert place in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("option", ["--file", "--out", "--adapter", None])
@pytest.mark.parametrize("name", ["/tmp/\udcff", "a\0b", "x" * 300, "~nobody-at-all/x", ""])
def test_names_that_no_file_can_have(capsys, folders, option, name):
    words = ["generate", name] if option is None else ["generate", folders["run"], option, name]
    assert run_command([*words, *(["--prompt", "a"] if option != "--file" else [])]) == 2
    error = capsys.readouterr().err
    assert error.startswith("devft: ")
    assert error.count("\n") == 1


def test_answers_are_written_before_they_are_shown(capsys, folders, tmp_path, monkeypatch):
    """Whatever becomes of the screen: all answers are in the file, and the exit code says that nobody saw them."""
    path, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    path.write_text("a b\n" * 5)

    def closed(*text, **how):
        raise BrokenPipeError

    monkeypatch.setattr(answers, "show", closed)
    words = ["--file", str(path), "--generation-batch", "2", "--max-new-tokens", "2"]
    assert run_command(["generate", folders["run"], *words, "--out", str(out)]) != 0
    assert len(rows(out)) == 5


def test_what_is_stopped_keeps_the_answers_that_it_had(folders, tmp_path, monkeypatch):
    path, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    path.write_text("a b\n" * 6)
    answer, calls = respondent.Respondent.answer, []

    def interrupted(self, records, options, **more):
        calls.append(len(records))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, records, options, **more)

    monkeypatch.setattr(respondent.Respondent, "answer", interrupted)
    words = ["--file", str(path), "--generation-batch", "2", "--max-new-tokens", "2", "--out", str(out)]
    assert run_command(["generate", folders["run"], *words]) == 130
    assert len(rows(out)) == 4


def test_older_answers_stay_until_there_are_new_ones(capsys, folders, tmp_path):
    out = tmp_path / "answers.jsonl"
    out.write_text(EARLIER)
    assert run_command(["generate", folders["run"], "--prompt", "a " * 80, "--out", str(out)]) == 2
    assert out.read_text() == EARLIER
    assert ask(capsys, folders["run"], "--prompt", "a", "--out", str(out))[0] == 0
    assert len(rows(out)) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_sentence(capsys, folders):
    assert run_command(["generate", folders["run"], "--prompt", "a", "--max-new-tokens", "2", "--out", "/dev/full"]) == 1
    error = capsys.readouterr().err
    assert "out /dev/full cannot be written (No space left on device); it holds 0 answers" in error


def test_the_bundled_model_speaks(capsys):
    code, text = ask(capsys, "bundled", "--prompt", "Once upon a time")
    assert code == 0
    assert text.strip()

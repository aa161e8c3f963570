"""`devft generate`: which model answers, how prompts come in and answers go out."""

import dataclasses
import io
import json
import shutil
import sys
from pathlib import Path

import jax
import pytest

from devft_jax.commands import generate
from devft_jax.commands.cli import run_command
from devft_jax.commands.generate import (
    PromptOptions,
    converse,
    open_respondent,
    read_prompts,
    read_standard_input,
    to_record,
)
from devft_jax.config.run_config import RunConfig, to_plain
from devft_jax.data import Record, tokenize
from devft_jax.data.prompts import prompt_text
from devft_jax.data.tokens import prompt_tokens
from devft_jax.errors import InputError
from devft_jax.evaluation import HeldOut
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import Compute
from devft_jax.runtime.compiled import CompiledPrograms
from tests.models.conftest import random_adapter, random_base

MODEL = ModelConfig(vocabulary=64, width=16, feed_forward=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, word_tokenizer):
    """A model's folder, an adapter's, and that of a finished run of both."""
    root = tmp_path_factory.mktemp("folders")
    model, run = root / "model", root / "run"
    save_pretrained(model, MODEL, random_base(MODEL), dtype="float32")
    word_tokenizer(words=tuple("abcdefghijklmnopqrstuvwxyz") + tuple(map(str, range(35)))).save_pretrained(model)
    export_peft(random_adapter(MODEL, ("q", "v")), run / "adapter")
    config = RunConfig(model=str(model), template="completion", rank=3, alpha=6.0)
    (run / "config.json").write_text(json.dumps(to_plain(config)))
    return {"model": str(model), "run": str(run), "adapter": str(run / "adapter")}


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
    assert run_command(["generate", str(nameless), "--prompt", "a"]) == 2
    assert "does not name the adapter's base; ask the base and add --adapter." in capsys.readouterr().err


EARLIER = '{"instruction": "an earlier question", "input": "", "prompt": "", "completion": "precious"}\n'


@pytest.mark.parametrize("content", ["precious\n", '{"model": "x"}', "\n", "\0\1"])
def test_a_file_that_holds_no_answers_is_not_replaced(folders, tmp_path, capsys, content):
    """Such as a run's own config.json."""
    out = tmp_path / "config.json"
    out.write_text(content)
    assert run_command(["generate", folders["run"], "--prompt", "a", "--out", str(out)]) == 2
    assert f"out {out} holds something else than answers of `devft generate`" in capsys.readouterr().err
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
    respondent = open_respondent(folders["run"], PromptOptions())
    [answer] = respondent.answer([to_record("a b c", "here")], GenerationOptions(max_new_tokens=6))
    assert text == f"{answer.text}\n"
    assert answer.text


def test_a_run_is_its_model_with_its_adapter(capsys, folders):
    _, run = ask(capsys, folders["run"], "--prompt", "a b c")
    _, both = ask(capsys, folders["model"], "--adapter", folders["adapter"], "--prompt", "a b c")
    _, bare = ask(capsys, folders["model"], "--prompt", "a b c")
    assert run == both != bare


def test_a_run_whose_model_was_moved_says_how_to_ask_it(folders, tmp_path):
    shutil.copytree(folders["run"], tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "config.json").read_text()) | {"model": str(tmp_path / "gone")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"gone of the run in .* is not there any more; .* add --adapter \S+/run/adapter"):
        open_respondent(str(tmp_path / "run"), PromptOptions())


@pytest.mark.parametrize("split", ['{"template": 5}', '{"template": "no such"}'])
def test_a_template_of_a_damaged_split_is_one_sentence(folders, tmp_path, split):
    shutil.copytree(folders["run"], tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "config.json").read_text()) | {"template": "auto"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    (tmp_path / "run" / "split.json").write_text(split)
    with pytest.raises(InputError, match="template"):
        open_respondent(str(tmp_path / "run"), PromptOptions())


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


def test_an_array_and_fields_of_other_names(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps([{"ask": "a", "about": 3, "instruction": "no"}]))
    [record] = read_prompts(path, {"instruction": "ask", "input": "about"})
    assert (record.instruction, record.input) == ("a", "3")


def test_lines_of_a_pipe(capsys, folders, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("a b c\n\n"))
    _, piped = ask(capsys, folders["run"])
    _, asked = ask(capsys, folders["run"], "--prompt", "a b c")
    assert piped == asked
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert ask(capsys, folders["run"])[0] == 2


def test_a_conversation_goes_on_after_a_prompt_that_is_too_long(capsys, folders, monkeypatch):
    lines = iter(["a b c", "", "a " * 80, "d"])

    def read(prompt):
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", read)
    respondent = open_respondent(folders["run"], PromptOptions())
    written = []
    converse({"answer": respondent}, GenerationOptions(max_new_tokens=6), written.append)
    shown = capsys.readouterr()
    assert [row["instruction"] for row in written] == ["a b c", "d"]
    assert shown.out == f"{written[0]['completion']}\n{written[1]['completion']}\n\n"
    assert "prompt 2 has 81 tokens" in shown.err


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


def test_greedy_answers_are_right_exactly_where_exact_match_says_so(folders):
    """Held-out evaluation claims to know what greedy decoding would say without decoding."""
    respondent = open_respondent(folders["run"], PromptOptions())
    prompts = [Record(instruction=letter, input="", output="", category=None, origin="") for letter in "abcdefgh"]
    options = GenerationOptions(max_new_tokens=8)
    # Half of the references are what the model says, so that there is something to get right.
    eos = respondent.model.tokenizer.eos_token_id
    said = respondent.answer(prompts, options)
    records = [
        Record(instruction=prompt.instruction, input="", output=answer.text if index % 2 else "b", category=None, origin="")
        for index, (prompt, answer) in enumerate(zip(prompts, said, strict=True))
    ]
    # Longer references are cut where the answers end: bos, one letter and 8 tokens.
    examples = tokenize(records, respondent.model.tokenizer, template="completion", max_length=10)
    held_out = HeldOut(
        MODEL, Compute(), examples, buckets=(16,), batch_size=8, devices=jax.devices()[:1], programs=CompiledPrograms()
    )
    hits = held_out(respondent.model.base, respondent.adapter).hits
    assert 0 < hits.sum() < len(hits)
    for record, answer, hit, index in zip(records, said, hits, range(8), strict=True):
        reference = examples.row(index)[examples.prompt_lengths[index] :]
        ended = (*answer.tokens, eos) if answer.finish_reason == "eos" else answer.tokens
        assert hit == (tuple(reference.tolist()) == ended), record


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["run", "--prompt", "a", "--file", "x"], "prompt and file exclude each other"),
        (["run", "--file", "/nowhere.txt"], "file /nowhere.txt does not exist"),
        (["run", "--input", "a"], "input belongs to a prompt"),
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


RUN = to_plain(RunConfig())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rounds": 3}, "describes neither a run nor a model"),
        ({"model": "bundled"}, r"is no run's \(it lacks algorithm\)"),
        (RUN, "has no adapter yet"),
        ({**RUN, "objects": {"model": "Model"}}, "its model as an object"),
        ({**RUN, "speed": 3}, "option 'speed' does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_folders_that_cannot_be_asked(tmp_path, fields, sentence):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=sentence):
        open_respondent(str(tmp_path), PromptOptions())


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.jsonl", '{"instruction": "a"}\n{"instruction"', r"a.jsonl:2 is not valid JSON"),
        ("a.jsonl", '{"text": "a"}', r"a.jsonl:1 has no field instruction, prompt or question \(it has text\)"),
        ("a.jsonl", "3", "a.jsonl:1 is a int, not an object"),
        ("a.json", "{}", "does not hold an array"),
        ("a.json", "[]", "holds no prompt"),
        ("a.txt", "\n\n", "holds no prompt"),
        ("a.txt", "a\n\udcff", r"a\.txt:2 is not UTF-8 text \(byte 0xff\)"),
        (
            "a.jsonl",
            '{"instruction": "a"}\n{"instruction": "a", "instruction": "b"}',
            r"a\.jsonl:2 names 'instruction' twice",
        ),
        ("a.jsonl", '\n{"instruction": ' + "1" * 5000 + "}", r"a\.jsonl:2 holds an integer of 5,000 digits"),
        ("a.jsonl", '{"instruction": "\\ud800"}', r"a\.jsonl:1 holds .*half of a character"),
        ("a.json", '[\n{"instruction": "\\udfff"}]', r"a\.json:2 holds .*half of a character"),
        ("a.json", "[" * 100_000, "is nested too deeply"),
    ],
)
def test_files_that_hold_no_prompts(tmp_path, name, text, sentence):
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InputError, match=sentence):
        read_prompts(tmp_path / name, {})


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


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a\n\xff\n", r"standard input:2 is not UTF-8 text \(byte 0xff\)"),
        (b"\n \n", "standard input holds no prompt"),
        (b"", "standard input holds no prompt"),
    ],
)
def test_a_pipe_that_is_no_text(content, sentence):
    with pytest.raises(InputError, match=sentence):
        read_standard_input(io.TextIOWrapper(io.BytesIO(content), "ascii"))


def test_a_pipe_is_utf8_whatever_the_terminal_has(monkeypatch):
    piped = io.TextIOWrapper(io.BytesIO("\ufeffä\r\n\n日本\n".encode()), "ascii")
    assert [(record.instruction, record.origin) for record in read_standard_input(piped)] == [
        ("ä", "standard input:1"),
        ("日本", "standard input:3"),
    ]
    monkeypatch.setattr(generate, "MOST_BYTES", 10)
    with pytest.raises(InputError, match="standard input holds more than 10 bytes"):
        read_standard_input(io.TextIOWrapper(io.BytesIO(b"a" * 11), "ascii"))


def test_answers_are_written_before_they_are_shown(capsys, folders, tmp_path, monkeypatch):
    """Whatever becomes of the screen: all answers are in the file, and the exit code says that nobody saw them."""
    path, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    path.write_text("a b\n" * 5)

    def closed(*text, **how):
        raise BrokenPipeError

    monkeypatch.setattr(generate, "show", closed)
    words = ["--file", str(path), "--generation-batch", "2", "--max-new-tokens", "2"]
    assert run_command(["generate", folders["run"], *words, "--out", str(out)]) != 0
    assert len(rows(out)) == 5


def test_what_is_stopped_keeps_the_answers_that_it_had(folders, tmp_path, monkeypatch):
    path, out = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    path.write_text("a b\n" * 6)
    answer, calls = generate.Respondent.answer, []

    def interrupted(self, records, options, **more):
        calls.append(len(records))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return answer(self, records, options, **more)

    monkeypatch.setattr(generate.Respondent, "answer", interrupted)
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


CHAT = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_chat_template_words_prompts_as_in_training(word_tokenizer):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = CHAT
    record = to_record("a b", "prompt")
    examples = tokenize([dataclasses.replace(record, output="c")], tokenizer, template="chat", max_length=32)
    prompt = prompt_tokens(record, tokenizer, "chat")
    assert prompt == examples.row(0)[: len(prompt)].tolist()
    assert examples.prompt_lengths[0] == len(prompt)
    assert prompt_text(record, "chat", tokenizer) == "<user> a b <assistant>"


def test_a_run_that_chose_its_template_is_asked_in_that(folders, tmp_path):
    """`auto` is decided by the data of the run, which generation has not got: the split says what it was."""
    run = tmp_path / "run"
    shutil.copytree(folders["run"], run)
    config = json.loads((run / "config.json").read_text()) | {"template": "auto"}
    (run / "config.json").write_text(json.dumps(config))
    (run / "split.json").write_text(json.dumps({"template": "alpaca_short"}))
    assert open_respondent(str(run), PromptOptions()).template == "alpaca_short"
    with pytest.raises(InputError, match="template 'chat' needs a chat template"):
        open_respondent(str(run), PromptOptions(template="chat"))
    assert open_respondent(str(run), PromptOptions(template="auto")).template == "alpaca"


def test_a_damaged_configuration_is_one_sentence(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders["run"], run)
    config = json.loads((run / "config.json").read_text()) | {"model": 5}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="model 5 is not text"):
        open_respondent(str(run), PromptOptions())


TURNS = "{% for m in messages %}{{ m.role }} {{ m.content }} <|end|> {% endfor %}"


def test_what_ended_answers_in_training_ends_them(folders, tmp_path, word_tokenizer):
    """A chat template's end of turn that is not the eos: by the run's split, the adapter's folder or the template."""
    tokenizer = word_tokenizer(words=tuple("abcdefghijklmnopqrstuvwxyz") + tuple(map(str, range(34))))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    tokenizer.chat_template = TURNS
    run, model = tmp_path / "run", tmp_path / "model"
    shutil.copytree(folders["run"], run)
    shutil.copytree(folders["model"], model)
    tokenizer.save_pretrained(model)
    end, eos = tokenizer.convert_tokens_to_ids("<|end|>"), tokenizer.eos_token_id
    config = json.loads((run / "config.json").read_text()) | {"model": str(model)}
    (run / "config.json").write_text(json.dumps(config))

    def ends(source, **asked):
        return open_respondent(str(source), PromptOptions(**asked)).eos_ids

    assert ends(run) == ends(model) == (eos,)
    assert ends(model, template="chat") == ends(run, template="chat") == (eos, end)
    (run / "split.json").write_text(json.dumps({"ends_with": ["</s>", "<|end|>"]}))
    assert ends(run) == (eos, end)
    (run / "adapter" / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    assert ends(model, adapter=str(run / "adapter")) == (eos, end)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert ends(model) == (5, 6, eos)
    for wrong in ("5", [5, -1], [True], 2**31, 10**30, [None]):
        (model / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(InputError, match=r"eos_token_id .* in .*generation_config\.json is neither a token id nor"):
            ends(model)
    (model / "generation_config.json").unlink()
    (run / "split.json").write_text(json.dumps({"ends_with": ["<|elsewhere|>"]}))
    with pytest.raises(InputError, match=r"trained answers end in '<\|elsewhere\|>', which the tokenizer .* does not have"):
        ends(run)

"""Which model answers, and how prompts are worded and answers end."""

import dataclasses
import json
import shutil

import jax
import pytest

from devft_jax.config.files import to_plain
from devft_jax.config.run_config import RunConfig
from devft_jax.data import Record, tokenize
from devft_jax.data.encoding import prompt_tokens
from devft_jax.data.prompts import prompt_text
from devft_jax.errors import InputError
from devft_jax.evaluation.held_out import HeldOut
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.inference.prompts import to_record
from devft_jax.inference.respondent import open_respondent
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.llama import Compute
from devft_jax.runtime.compiled import CompiledPrograms
from tests.inference.folders import MODEL, write_folders
from tests.run_records import split_record


@pytest.fixture(scope="module")
def folders(tmp_path_factory, word_tokenizer):
    return write_folders(tmp_path_factory.mktemp("folders"), word_tokenizer)


def test_a_run_whose_model_was_moved_says_how_to_ask_it(folders, tmp_path):
    shutil.copytree(folders["run"], tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "config.json").read_text()) | {"model": str(tmp_path / "gone")}
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"gone of the run in .* does not exist any more; .* with --model"):
        open_respondent(str(tmp_path / "run"), ModelOptions())
    asked = open_respondent(str(tmp_path / "run"), ModelOptions(), SelectionOptions(model=folders["model"]))
    assert asked.source.name == f"the adapter of {tmp_path / 'run'} as it finished"


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        ({}, "its split lacks a usable partition"),
        (split_record().to_plain() | {"template": 5}, "its split lacks a usable template"),
        (split_record(template="no such").to_plain(), "template 'no such' is unknown"),
        (None, "has no split.json, which names its template"),
    ],
    ids=["empty", "number", "unknown", "absent"],
)
def test_a_template_of_a_damaged_split_is_one_sentence(folders, tmp_path, split, sentence):
    shutil.copytree(folders["run"], tmp_path / "run")
    fields = json.loads((tmp_path / "run" / "config.json").read_text()) | {"template": "auto"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    if split is not None:
        (tmp_path / "run" / "split.json").write_text(json.dumps(split))
    with pytest.raises(InputError, match=sentence):
        open_respondent(str(tmp_path / "run"), ModelOptions())


def test_greedy_answers_are_right_exactly_where_exact_match_says_so(folders):
    """Held-out evaluation claims to know what greedy decoding would say without decoding."""
    respondent = open_respondent(folders["run"], ModelOptions())
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


RUN = to_plain(RunConfig())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"rounds": 3}, "describes neither a run nor a model"),
        ({"model": "bundled"}, r"is not a run's \(it lacks algorithm\)"),
        (RUN, "has no checkpoint yet"),
        ({**RUN, "objects": {"model": "Model"}}, "was passed as an object"),
        ({**RUN, "speed": 3}, "option 'speed' does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_folders_that_cannot_be_asked(tmp_path, fields, sentence):
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(InputError, match=sentence):
        open_respondent(str(tmp_path), ModelOptions())


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
    (run / "split.json").write_text(json.dumps(split_record(template="alpaca_short").to_plain()))
    assert open_respondent(str(run), ModelOptions()).template == "alpaca_short"
    with pytest.raises(InputError, match="template 'chat' needs a chat template"):
        open_respondent(str(run), ModelOptions(template="chat"))
    assert open_respondent(str(run), ModelOptions(template="auto")).template == "alpaca"


def test_a_damaged_configuration_is_one_sentence(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders["run"], run)
    config = json.loads((run / "config.json").read_text()) | {"model": 5}
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="model 5 is not text"):
        open_respondent(str(run), ModelOptions())


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
        return open_respondent(str(source), ModelOptions(**asked)).eos_ids

    assert ends(run) == ends(model) == (eos,)
    assert ends(model, template="chat") == ends(run, template="chat") == (eos, end)
    (run / "split.json").write_text(json.dumps(split_record(ends_with=["</s>", "<|end|>"]).to_plain()))
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
    (run / "split.json").write_text(json.dumps(split_record(ends_with=["<|elsewhere|>"]).to_plain()))
    with pytest.raises(InputError, match=r"trained answers end in '<\|elsewhere\|>', which the tokenizer .* does not have"):
        ends(run)

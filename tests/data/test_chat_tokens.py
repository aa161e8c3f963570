"""Conversations as tokens: the loss covers what the assistant says, and prompts are those of generation."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devft_jax.data import DataOptions, build_federated_data, describe, gather_batch, split_record
from devft_jax.data.encoding import prompt_tokens
from devft_jax.data.records import Record, Turn
from devft_jax.data.tokens import tokenize
from devft_jax.errors import InputError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system text') }}"
    "{% elif m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
DATED = "{{ bos_token }}{{ strftime_now('%d %b %Y') }}\n" + CHATML
ENDLESS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

# What a Qwen3 model's template does, in other words: what the model thought is shown only after the last question, where an
# answer without thoughts gets empty ones.
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}{% set thought = '' %}{% set said = m.content %}"
    "{% if m.role == 'assistant' and '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1] %}{% endif %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought.strip()) %}"
    "{{ '<think>\n' + thought.strip() + '\n</think>\n\n' + said.strip() }}{% else %}{{ said.strip() }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "the cat sat on the mat and said hello to you assistant user system\n\n 12 + 34 = 46 [INST] hi [/INST] ok\n"


@pytest.fixture(scope="module")
def chat_tokenizer():
    """Factory of tokenizers with a chat template: of bytes like LLaMA 3's, or of words like LLaMA 2's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

    def build(template, kind="bytes"):
        if kind == "bytes":
            backend = Tokenizer(models.BPE())
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            backend.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
        else:
            backend = Tokenizer(models.BPE(unk_token="<unk>"))
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
            backend.decoder = decoders.Metaspace(prepend_scheme="first")
            alphabet = [chr(code) for code in range(32, 127)] + ["\n"]
        trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
        backend.train_from_iterator([TEXT] * 4, trainer)
        if kind == "words":
            # SentencePiece learns within words and then merges over the text as a whole.
            backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        )
        tokenizer.chat_template = template
        return tokenizer

    return build


def talk(*contents, system=None):
    """A conversation of user and assistant in turn, by what they say."""
    turns = [Turn(("user", "assistant")[number % 2], content) for number, content in enumerate(contents)]
    return Record.of_turns([Turn("system", system), *turns] if system else turns, None, "chat.jsonl:1")


def answers(examples, n, tokenizer):
    """The text of every run of answer tokens."""
    row = examples.row(n)
    flags = examples.is_answer[examples.starts[n] :][: len(row)]
    borders = np.flatnonzero(np.diff(flags, prepend=False, append=False)).reshape(-1, 2)
    texts = [
        tokenizer.backend_tokenizer.decode(row[start:stop].tolist(), skip_special_tokens=False) for start, stop in borders
    ]
    return texts, borders


def prompt_ids(tokenizer, turns):
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


WORDS = st.lists(st.sampled_from(["the", "cat", "sat", "mat", "12", "=", "ok"]), min_size=1, max_size=6).map(" ".join)


@pytest.mark.parametrize(
    ("template", "kind"), [(CHATML, "bytes"), (CHATML, "words"), (BRACKETS, "bytes"), (BRACKETS, "words")]
)
@settings(max_examples=25, deadline=None)
@given(contents=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_every_prompt_is_what_generation_sees_and_every_answer_is_whole(chat_tokenizer, template, kind, contents):
    tokenizer = chat_tokenizer(template, kind)
    record = talk(*(text for exchange in contents for text in exchange))
    examples = tokenize([record], tokenizer, template="chat", max_length=2000)
    found, borders = answers(examples, 0, tokenizer)
    end = "<|im_end|>" if template == CHATML else "</s>"
    # A word tokenizer's decoder is not exact about spaces.
    assert ["".join(text.split()) for text in found] == ["".join(f"{answer}{end}".split()) for _, answer in contents]
    for number, (start, _) in enumerate(borders):
        assert examples.row(0)[:start].tolist() == prompt_ids(tokenizer, record.turns[: 2 * number + 1])
    assert examples.prompt_lengths.tolist() == [borders[0][0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=3))
def test_any_text_comes_back_from_its_tokens(chat_tokenizer, contents):
    tokenizer = chat_tokenizer(CHATML)
    record = talk(*(text for exchange in contents for text in exchange))
    examples = tokenize([record], tokenizer, template="chat", max_length=4000)
    whole = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in record.turns)
    assert tokenizer.decode(examples.row(0)) == whole.removesuffix("\n")
    found, borders = answers(examples, 0, tokenizer)
    assert found == [f"{answer}<|im_end|>" for _, answer in contents]
    assert examples.row(0)[: borders[0][0]].tolist() == prompt_ids(tokenizer, record.turns[:1])


def test_an_answer_whose_first_token_would_reach_into_the_prompt_is_tokenised_apart(chat_tokenizer):
    tokenizer = chat_tokenizer(CHATML)
    assert len(tokenizer("\n\n")["input_ids"]) == 1
    examples = tokenize([talk("hi", "\nok")], tokenizer, template="chat")
    assert answers(examples, 0, tokenizer)[0] == ["\nok<|im_end|>"]


def test_the_chat_template_prints_bos_and_none_is_added(chat_tokenizer):
    tokenizer = chat_tokenizer(BRACKETS)
    row = tokenize([talk("hi", "ok", "hi", "ok")], tokenizer, template="chat").row(0).tolist()
    assert [row.count(tokenizer.bos_token_id), row.count(tokenizer.eos_token_id)] == [2, 2]
    assert tokenize([talk("hi", "ok")], chat_tokenizer(CHATML), template="chat").row(0)[0] != tokenizer.bos_token_id


def test_a_template_that_never_ends_a_turn_gets_an_eos_at_the_end(chat_tokenizer):
    tokenizer = chat_tokenizer(ENDLESS)
    examples = tokenize([talk("hi", "ok")], tokenizer, template="chat")
    assert examples.row(0)[-1] == tokenizer.eos_token_id
    assert examples.row(0).tolist().count(tokenizer.eos_token_id) == 1


def test_the_date_in_a_prompt_does_not_move(chat_tokenizer):
    tokenizer = chat_tokenizer(DATED)
    text = tokenizer.decode(tokenize([talk("hi", "ok")], tokenizer, template="chat").row(0))
    assert text.startswith("<s>26 Jul 2024\n<|im_start|>user\nhi")


def test_what_a_template_refuses_is_named(chat_tokenizer):
    with pytest.raises(InputError, match=r"refuses the conversation chat\.jsonl:1 \(no system text\)"):
        tokenize([talk("hi", "ok", system="be brief")], chat_tokenizer(BRACKETS), template="chat")


def test_a_conversation_is_cut_within_its_turns(chat_tokenizer):
    tokenizer = chat_tokenizer(CHATML)
    record = talk("the cat", "sat on the mat", "and said", "hello to you")
    whole = tokenize([record], tokenizer, template="chat", max_length=2000)
    [(first, second), (third, fourth)] = answers(whole, 0, tokenizer)[1].tolist()
    for limit in range(first + 1, fourth + 1):
        cut = tokenize([record], tokenizer, template="chat", max_length=limit)
        # Without a token of the second answer its prompt teaches nothing and is left out.
        length = limit if limit <= second or limit > third else second
        assert cut.row(0).tolist() == whole.row(0)[:length].tolist()
        assert cut.is_answer.tolist() == whole.is_answer[:length].tolist()
        assert cut.truncated.tolist() == [limit < fourth]
    with pytest.raises(InputError, match=r"1 of 1 prompts leave no room .* chat\.jsonl:1; raise max_length, or shorten"):
        tokenize([record], tokenizer, template="chat", max_length=first)


def test_text_templates_end_every_answer_with_eos(word_tokenizer):
    examples = tokenize([talk("a b", "0", "c", "1 2", system="z")], word_tokenizer(), template="completion")
    assert examples.row(0).tolist() == [1, 28, 3, 4, 29, 2, 5, 30, 31, 2]
    assert examples.is_answer.tolist() == [0, 0, 0, 0, 1, 1, 0, 1, 1, 1]
    _, mask = gather_batch(examples, np.array([0, -1]), 12)
    assert mask[0].tolist() == [*examples.is_answer.tolist(), False, False]
    assert not mask[1].any()


def test_another_chat_template_is_another_store(chat_tokenizer, tmp_path):
    for number, template in enumerate((CHATML, ENDLESS, DATED), 1):
        for _ in range(2):
            tokenize([talk("hi", "ok")], chat_tokenizer(template), template="chat", cache_dir=tmp_path)
            assert len(list((tmp_path / "tokens").iterdir())) == number


def test_conversations_train_with_the_tokenizers_template_unless_told_otherwise(chat_tokenizer, word_tokenizer, tmp_path):
    path = tmp_path / "chat.jsonl"
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]}
    path.write_text((json.dumps(row) + "\n") * 4)
    test = tmp_path / "test.json"
    test.write_text(json.dumps([{"instruction": "hi", "output": "ok"}]))
    tokenizer = chat_tokenizer(CHATML)
    data = build_federated_data(DataOptions(data=str(path), test_data=str(test), clients=2), tokenizer)
    assert data.template == "chat"
    assert data.test.row(0).tolist() == data.train.row(0).tolist()
    told = build_federated_data(DataOptions(data=str(path), template="alpaca_short", clients=2), tokenizer)
    assert told.template == "alpaca_short"
    assert tokenizer.decode(told.train.row(0)).startswith("### Instruction:\nhi")
    assert build_federated_data(DataOptions(data=str(path), clients=2), word_tokenizer()).template == "alpaca"
    assert build_federated_data(DataOptions(data=str(test), clients=1), tokenizer).template == "alpaca"


# ---- templates that word earlier turns anew ------------------------------------------------------------------------------


def test_every_answer_is_trained_once_after_the_prompt_that_generation_sees(chat_tokenizer):
    tokenizer = chat_tokenizer(THINKING)
    record = talk("hi", "<think>\nhm\n</think>\n\nhello", "and", "ok", "so", "12", system="Be brief.")
    plain = talk("the cat", "sat")
    examples = tokenize([plain, record, plain], tokenizer, template="chat", max_length=2000)
    assert examples.record_index.tolist() == [0, 1, 1, 1, 2]
    assert examples.owners.tolist() == [0, 1, 1, 1, 2]
    assert examples.answers.tolist() == [0, 1, 2, 3, 0]
    said = ["<think>\nhm\n</think>\n\nhello", "<think>\n\n</think>\n\nok", "<think>\n\n</think>\n\n12"]
    for number, text in enumerate(said, 1):
        found, [(start, stop)] = answers(examples, number, tokenizer)
        assert found == [f"{text}<|im_end|>"]
        assert stop == examples.lengths[number]
        asked = record.turns[: 2 * number]
        assert examples.row(number)[:start].tolist() == prompt_ids(tokenizer, asked)
        assert "hm" not in tokenizer.decode(examples.row(number)[:start])


def test_a_template_that_words_only_some_turns_anew_goes_on_in_the_text_begun(chat_tokenizer):
    # The system text stands before the last question, as in some of Mistral's.
    moved = (
        "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST]{% if loop.index > 4 %} late{% endif %}"
        "{{ m.content }}[/INST]{% else %}{{ '...' if messages|length > 4 and not loop.last else m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
    tokenizer = chat_tokenizer(moved)
    examples = tokenize([talk("hi", "a", "hi", "b", "hi", "c")], tokenizer, template="chat")
    assert examples.answers.tolist() == [2, 3]
    assert answers(examples, 0, tokenizer)[0] == ["a</s>", "b</s>"]
    assert answers(examples, 1, tokenizer)[0] == ["c</s>"]


def test_answers_that_do_not_fit_are_left_out_and_said(chat_tokenizer):
    tokenizer = chat_tokenizer(THINKING)
    record = talk("hi", "ok", "the cat sat on the mat " * 10, "ok")
    whole = tokenize([record], tokenizer, template="chat", max_length=2000)
    assert whole.truncated.tolist() == [False, False]
    short = tokenize([record], tokenizer, template="chat", max_length=int(whole.lengths[0]))
    assert short.row(0).tolist() == whole.row(0).tolist()
    assert short.truncated.tolist() == [True]


def test_the_examples_of_a_conversation_stay_together(chat_tokenizer, tmp_path):
    tokenizer = chat_tokenizer(THINKING)
    rows = []
    for number in range(12):
        said = [("user", f"{number} cat"), ("assistant", f"{number}")] * (1 + number % 3)
        rows.append({"messages": [{"role": role, "content": text} for role, text in said]})
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    for method in ("iid", "quantity", "length"):
        options = DataOptions(data=str(path), clients=4, partition=method, test_fraction=0.25, partition_groups=2)
        data = build_federated_data(options, tokenizer)
        assert len(np.unique(data.test.record_index)) == 3
        parts = [set(data.train.record_index[client.indices].tolist()) for client in data.clients]
        assert sum(map(len, parts)) == 9
        assert sum(len(client.indices) for client in data.clients) == len(data.train) == 24 - len(data.test)
        assert not set(data.test.record_index) & set.union(*parts)
    note = "conversations are trained answer by answer, as"
    assert note in describe(data)
    assert note in split_record(data).notes[0]
    appended = build_federated_data(DataOptions(data=str(path), clients=4), chat_tokenizer(CHATML))
    assert len(appended.train) == 12
    assert appended.notes == ()


# ---- what leads and ends a text -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "lead"),
    [(None, []), ("<s> $A", ["<s>"]), ("$A </s>", []), ("<s> $A </s>", ["<s>"]), ("<unk> <s> $A", ["<unk>", "<s>"])],
)
def test_a_text_begins_as_the_tokenizer_has_it(chat_tokenizer, tmp_path, rule, lead):
    from tokenizers import processors

    tokenizer = chat_tokenizer(CHATML)
    if rule is not None:
        special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<unk>", "<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=rule, special_tokens=special)
    asked = Record("hi", "", "ok", None, "a.jsonl:1")
    prompt = prompt_tokens(asked, tokenizer, "completion")
    assert tokenizer.convert_ids_to_tokens(prompt) == [*lead, "hi"]
    row = tokenize([asked], tokenizer, template="completion", cache_dir=tmp_path).row(0).tolist()
    assert row == [*prompt, *tokenizer("ok", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    chat = tokenize([talk("hi", "ok")], tokenizer, template="chat").row(0)
    assert tokenizer.convert_ids_to_tokens(int(chat[0])) == "<|im_start|>"
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"instruction": "hi", "output": "ok"}]))
    for template, begins, ends in (("completion", lead, ["</s>"]), ("chat", ["<|im_start|>"], ["<|im_end|>"])):
        data = build_federated_data(DataOptions(data=str(path), clients=1, template=template), tokenizer)
        split = split_record(data)
        assert (split.begins_with, split.ends_with) == (begins, ends)
        said = " ".join(begins) or "no special token"
        assert f"template {template}; an example begins with {said} and ends in {ends[0]}" in describe(data)


def test_what_ends_answers_is_known_where_every_conversation_is_cut(chat_tokenizer, tmp_path):
    path = tmp_path / "chat.jsonl"
    said = [("user", "hi"), ("assistant", "ok"), ("user", "hi"), ("assistant", "the cat sat on the mat")]
    path.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in said]}))
    for limit in (24, 30):
        data = build_federated_data(DataOptions(data=str(path), clients=1, max_length=limit), chat_tokenizer(CHATML))
        assert data.train.truncated.all()
        assert (data.train.lengths[0] < limit) == (limit == 24)
        assert data.ends_with == ("<|im_end|>",)


def test_the_bundled_tokenizer_keeps_its_bos():
    from devft_jax.models.huggingface.tokenizer import load_tokenizer
    from devft_jax.training.submodels import bundled_model

    tokenizer = load_tokenizer(bundled_model())
    assert tokenizer("a")["input_ids"] == [1, *tokenizer("a", add_special_tokens=False)["input_ids"]]
    assert prompt_tokens(Record("a", "", "b", None, "x:1"), tokenizer, "completion") == tokenizer("a")["input_ids"]


@pytest.mark.parametrize(("kind", "answer"), [("bytes", "Ġok"), ("words", "▁ok")])
def test_openfedllm_is_tokenised_as_one_text(chat_tokenizer, kind, answer):
    tokenizer = chat_tokenizer(CHATML, kind)
    record = Record("the cat", "sat", "ok", None, "a.jsonl:1")
    row = tokenize([record], tokenizer, template="openfedllm").row(0).tolist()
    text = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nthe cat sat \n\n### Response: ok"
    )
    assert row == [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    prompt = prompt_tokens(record, tokenizer, "openfedllm")
    assert row[: len(prompt)] == prompt
    assert "".join(tokenizer.convert_ids_to_tokens(row[len(prompt) :])) == f"{answer}</s>"
    both = tokenize([talk("hi", "ok", "hi", "12")], tokenizer, template="openfedllm")
    assert ["".join(text.split()) for text in answers(both, 0, tokenizer)[0]] == ["ok</s>", "12</s>"]


@pytest.mark.parametrize("template", ["alpaca", "alpaca_short", "completion", "openfedllm"])
@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_a_conversation_is_asked_with_what_comes_before_its_last_answer_in_training(chat_tokenizer, template, kind):
    tokenizer = chat_tokenizer(CHATML, kind)
    examples = tokenize([talk("hi", "ok", "the cat", "12")], tokenizer, template=template)
    row = examples.row(0).tolist()
    prompt = prompt_tokens(talk("hi", "ok", "the cat", "mat"), tokenizer, template)
    assert row[: len(prompt)] == prompt
    last = examples.is_answer[examples.starts[0] :][len(prompt) - 1 : len(row)].tolist()
    assert last == [False] + [True] * (len(row) - len(prompt))
    assert len(last) > 1

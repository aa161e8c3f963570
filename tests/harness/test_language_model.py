"""The model as the harness's backend: what it makes of texts, and how its answers are kept."""

import dataclasses
import io
import math
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'devft-jax[eval]'")

from devft_jax.errors import InputError
from devft_jax.harness.language_model import LanguageModel
from devft_jax.harness.rows import ScoringRequest
from devft_jax.harness.store import RequestStore
from devft_jax.models.architecture import ModelConfig
from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.model import Model
from devft_jax.reporting.progress import Progress
from tests.tiny import random_base

MODEL = ModelConfig(vocabulary=64, width=16, feed_forward=24, layers=2, heads=4, kv_heads=2, head_size=4, max_length=32)
WORDS = tuple("abcdefghijklmnopqrstuvwxyz") + tuple(map(str, range(35)))
PAIRS = [("a b c", " d"), ("a b c", " e f"), ("", "g h"), ("a b ", "c"), ("  ", "a"), ("a b c", " d"), ("x y", " z 1 2")]


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


@pytest.fixture(scope="module")
def base():
    return random_base(MODEL)


@pytest.fixture
def language_model(base, word_tokenizer):
    """Factory of backends of one tiny model; a text's tokens are its words behind `<s>`."""

    def make(*, bos=True, chat=None, **options):
        tokenizer = word_tokenizer(words=WORDS, bos=bos)
        tokenizer.chat_template = chat
        return LanguageModel(Model(MODEL, base, tokenizer), devices=jax.devices()[:1], **options)

    return make


def ids(text: str) -> list[int]:
    return [WORDS.index(word) + 3 for word in text.split()]


def test_bos_leads_the_context_and_the_whole_alike(language_model):
    found = language_model().loglikelihood(requests(*PAIRS))
    scorer = language_model().scorer
    whole = [
        ([1, *ids("a b c")], ids("d")),
        ([1, *ids("a b c")], ids("e f")),
        ([1], ids("g h")),
        ([1, *ids("a b")], ids("c")),
    ]
    whole += [
        ([1], ids("a")),
        ([1, *ids("a b c")], ids("d")),
        ([1, *ids("x y")], ids("z 1 2")),
    ]
    expected = scorer.score([ScoringRequest.of(*pair, 32) for pair in whole])
    np.testing.assert_allclose([value for value, _ in found], [each.value for each in expected], atol=1e-5)
    assert [greedy for _, greedy in found] == [each.greedy for each in expected]


def test_without_a_bos_a_text_without_context_follows_the_eos(language_model):
    model = language_model(bos=False)
    assert model.tok_encode("a b") == ids("a b")
    [(value, _)] = model.loglikelihood(requests(("", "g h")))
    [expected] = model.scorer.score([ScoringRequest.of([2], ids("g h"), 32)])
    assert value == pytest.approx(expected.value)


def test_a_text_that_begins_with_its_bos_gets_no_second_one(language_model):
    model = language_model()
    assert model.tok_encode("<s> a") == model.tok_encode("a") == [1, *ids("a")]
    assert model.tok_encode("a", add_special_tokens=False) == ids("a")


def test_the_harness_is_told_of_every_answer(language_model):
    model = language_model()
    told = []
    model.set_cache_hook(SimpleNamespace(add_partial=lambda *arguments: told.append(arguments)))
    answers = model.loglikelihood(requests(*PAIRS))
    assert sorted(told) == sorted(("loglikelihood", pair, answer) for pair, answer in zip(PAIRS, answers, strict=True))


def test_a_long_text_is_scored_in_windows(language_model):
    """Every token once, behind as many tokens as the model reads."""
    model = language_model()
    text = " ".join(WORDS[index % 40] for index in range(70))
    [value, short] = model.loglikelihood_rolling(requests((text,), ("a b",)))
    tokens = [1, *ids(text)]
    inputs, total, position = [1, *tokens], 0.0, 0
    while position < len(tokens):
        last = min(position + 32, len(tokens))
        begin = max(last - 32, 0)
        [part] = model.scorer.score([ScoringRequest(np.array([*inputs[begin:last], tokens[last - 1]]), last - position)])
        total, position = total + part.value, last
    assert value == pytest.approx(total, abs=1e-4)
    [expected] = model.scorer.score([ScoringRequest.of([1], [1, *ids("a b")], 32)])
    assert short == pytest.approx(expected.value, abs=1e-5)


def test_prompts_that_are_cut_are_counted(language_model):
    stream = io.StringIO()
    model = language_model(progress=Progress(stream))
    long = " ".join(["a"] * 40)
    cut, whole, same = model.loglikelihood(requests((long, " b"), ("a", " b"), (" ".join(["a"] * 32), " b")))
    assert cut == pytest.approx(same)
    assert whole != cut
    model.generate_until(requests((long, {"until": [], "max_gen_toks": 4})))
    warnings = stream.getvalue().splitlines()
    assert warnings[0].startswith("warning: 2 of 3 prompts are longer than the 32 tokens that the model reads")
    assert warnings[1].startswith("warning: 1 of 1 prompts")


def test_texts_end_at_what_the_task_names(language_model, base):
    model = language_model()
    prompts = ["a b c", "x y", "1 2 3 4", "a b c"]
    settings = {"until": ["k"], "max_gen_toks": 9, "do_sample": False}
    texts = model.generate_until(requests(*((prompt, settings) for prompt in prompts)))
    options = GenerationOptions(max_new_tokens=9)
    encoded = [[1, *ids(prompt)] for prompt in prompts]
    answers = generate(MODEL, base, None, encoded, options=options, eos_ids=(2,), tokenizer=model.tokenizer)
    assert texts == [answer.text.split("k")[0] for answer in answers]
    assert texts[0] == texts[3]
    assert model.computed == 3


def test_worked_examples_of_all_prompts_are_read_once(word_tokenizer, tmp_path, monkeypatch):
    """The same texts, of whole prompts and of a resumed evaluation, and passes that read the rest of each prompt alone."""
    config = dataclasses.replace(MODEL, max_length=256)
    model = Model(config, random_base(config), word_tokenizer(words=WORDS))
    examples = " ".join(np.random.default_rng(0).choice(WORDS, 100).tolist())
    settings = {"until": ["k"], "max_gen_toks": 9}
    asked = requests(*((f"{examples} {rest}", settings) for rest in ("a b c", "d", "e f", "g h i j")))
    read = []

    def recorded(*arguments, prefix, **options):
        read.append(None if prefix is None else int(prefix.length))
        return generate(*arguments, prefix=prefix if sharing else None, **options)

    monkeypatch.setattr("devft_jax.harness.language_model.generate", recorded)

    def texts(some, store=None):
        made = LanguageModel(model, devices=jax.devices()[:1], batch=3, store=store)
        return made.generate_until(some), made.computed

    sharing = False
    expected, _ = texts(asked)
    sharing = True
    found, _ = texts(asked)
    assert found == expected
    assert len(set(found)) > 1
    assert read == [101] * 4
    # Half of the texts are there already; the others are generated behind the same cache.
    store = RequestStore(tmp_path / "requests.jsonl")
    assert texts(asked[:2], store) == (expected[:2], 2)
    assert texts(asked, store) == (expected, 2)
    assert read[4:] == [101, 101]


def test_settings_of_one_batch_do_not_reach_another(language_model):
    model = language_model()
    short, long = {"until": [], "max_gen_toks": 2}, {"until": [], "max_gen_toks": 6}
    asked = [("a b", short), ("a b", long), ("c", long), ("c", short)]
    together = model.generate_until(requests(*asked))
    assert together == [language_model().generate_until(requests(one))[0] for one in asked]
    assert [len(text.split()) for text in together] == [2, 6, 6, 2]


def test_drawn_texts_differ_by_repeat_and_not_by_place(language_model):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    asked = [("a b", settings), ("c d", settings), ("a b", settings)]
    first, other, second = language_model().generate_until(requests(*asked))
    assert first != second
    assert language_model().generate_until(requests(asked[1], asked[0], asked[0])) == [other, first, second]


def test_a_stopped_evaluation_goes_on(language_model, tmp_path, monkeypatch):
    """Killed after any pass: the scores are the same and no request is computed twice."""
    pairs = [(f"{a} {b}", f" {c}") for a in "abc" for b in "def" for c in "gh"]
    expected = language_model().loglikelihood(requests(*pairs))
    store = RequestStore(tmp_path / "requests.jsonl")
    stopped = language_model(store=store)
    steps = stopped.scorer.steps
    stopped.scorer.sequence_tokens = 3

    def interrupted(some):
        for number, step in enumerate(steps(some)):
            if number == 4:
                raise KeyboardInterrupt
            yield step

    monkeypatch.setattr(stopped.scorer, "steps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped.loglikelihood(requests(*pairs))
    assert 0 < len(store) == stopped.computed < len(pairs)
    resumed = language_model(store=RequestStore(tmp_path / "requests.jsonl"))
    found = resumed.loglikelihood(requests(*pairs))
    np.testing.assert_allclose([value for value, _ in found], [value for value, _ in expected], atol=1e-5)
    assert resumed.kept == stopped.computed
    assert resumed.computed == len(pairs) - stopped.computed
    settings = {"until": [], "max_gen_toks": 3}
    texts = resumed.generate_until(requests(("a", settings), ("b", settings)))
    last = language_model(store=RequestStore(tmp_path / "requests.jsonl"))
    assert last.generate_until(requests(("b", settings), ("a", settings))) == texts[::-1]
    assert last.computed == 0


def test_chat_template(language_model):
    chat = "{% for m in messages %}{{ m.role[0] }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}x{% endif %}"
    model = language_model(chat=chat)
    messages = [{"role": "user", "content": "a b"}]
    assert model.apply_chat_template(messages) == "u a b x"
    assert model.chat_template(True) == chat
    with pytest.raises(InputError, match="no chat template; leave apply_chat_template out"):
        language_model().apply_chat_template(messages)


def test_the_harness_computes_its_metrics_with_it(language_model, tmp_path):
    """A task of the user's, from its YAML to the score of every item."""
    from devft_jax.harness.results import paired_difference
    from devft_jax.harness.tasks import TaskOptions, open_tasks, run_tasks

    questions = [("a b", 0), ("c d", 1), ("e f", 0), ("g h", 1)]
    lines = "".join(f'{{"question": "{question}", "answer": {answer}}}\n' for question, answer in questions)
    (tmp_path / "questions.jsonl").write_text(lines)
    (tmp_path / "own.yaml").write_text(
        "task: own\noutput_type: multiple_choice\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/questions.jsonl}}}}\ntest_split: test\n"
        'doc_to_text: "{{question}}"\ndoc_to_choice: [x, y]\ndoc_to_target: answer\n'
        "metric_list: [{metric: acc}]\nmetadata: {version: 2}\n"
    )
    model = language_model()
    opened = open_tasks([f"{tmp_path / 'own.yaml'}:3"], cache=tmp_path / "cache")
    results = run_tasks(model, opened, TaskOptions())
    [score] = [score for score in results.scores if score.metric == "acc"]
    pairs = [(question, f" {choice}") for question, _ in questions[:3] for choice in "xy"]
    values = np.array([value for value, _ in model.loglikelihood(requests(*pairs))]).reshape(3, 2)
    hits = values.argmax(axis=1) == [answer for _, answer in questions[:3]]
    assert (score.task, score.items, score.shots, score.version) == ("own", 3, 0, "2")
    assert score.value == pytest.approx(hits.mean())
    assert results.values_of("own", "acc") == {("own", number): float(hit) for number, hit in enumerate(hits)}
    same = paired_difference(results, results, "own", "acc")
    assert (same.mean, same.standard_error, same.items) == (0.0, 0.0, 3)
    assert math.isfinite(score.standard_error)

"""An endpoint that misbehaves: what is sent again, what ends a case, what ends all; and where the key goes."""

import socket
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from devft_jax.errors import InputError, RunError
from devft_jax.judging import endpoint as module
from devft_jax.judging.cases import Abandoned, Case
from devft_jax.judging.endpoint import HIDDEN, Endpoint, address_of, asked_wait, key_of
from devft_jax.judging.options import EndpointOptions
from devft_jax.judging.questions import Question
from tests.judging.server import drips, endpoint, fails, garbage, hangs_up, says, sleeps

KEY = "sk-secret-of-the-test"
CASE = Case("single", Question(1, "writing", ("Hi",)), 1, (("Hello",),), None, "single-v1", "Be fair.", "Rate: Hello")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def judge_at(fake, say=lambda text: None, **options):
    return Endpoint(EndpointOptions(**{"endpoint": fake.url, "judge_model": "judge-1", "timeout": 5.0} | options), say)


def test_a_request_is_a_chat_completion_at_temperature_0_and_a_reply_has_its_tokens():
    with endpoint(says("fine [[8]]", {"prompt_tokens": 31, "completion_tokens": 7})) as fake:
        reply = judge_at(fake, judge_tokens=55)(CASE)
        assert (reply.text, reply.prompt_tokens, reply.completion_tokens, reply.refused) == ("fine [[8]]", 31, 7, None)
        [body] = fake.requests
        assert body == {
            "model": "judge-1",
            "temperature": 0,
            "max_tokens": 55,
            "messages": [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "Rate: Hello"}],
        }
        assert "Authorization" not in fake.headers[0]


@pytest.mark.parametrize(
    "wrong",
    [
        fails(429, "slow down"),
        fails(500, "broken"),
        fails(503),
        fails(408),
        garbage(b"<html>busy</html>"),
        garbage(b""),
        garbage(b'{"choices": []}'),
        garbage(b'{"choices": [{"message": {"content": "half a surr'),
        garbage(b"[1, 2]"),
        garbage(b'{"choices": [{"message": {"content": 7}}]}'),
        garbage(b"oops", status=502),
        hangs_up,
    ],
)
def test_what_may_pass_is_sent_again(wrong):
    lines = []
    with endpoint(wrong, wrong) as fake:
        reply = judge_at(fake, lines.append)(CASE)
        assert reply.text == "Rating: [[7]]"
        assert len(fake.requests) == 3
    assert len(lines) == 2
    assert all("asking again in" in line for line in lines)


@pytest.mark.parametrize("late", [sleeps(1.0), drips])
def test_an_answer_that_does_not_end_in_time_is_asked_for_again(late):
    with endpoint(late) as fake:
        begun = time.monotonic()
        assert judge_at(fake, timeout=0.2)(CASE).text == "Rating: [[7]]"
        assert time.monotonic() - begun < 5
        assert len(fake.requests) == 2


def test_waits_double_with_jitter_up_to_the_longest(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 1.0)
    waits = []
    with endpoint(*[fails(500)] * 9) as fake:
        judge = judge_at(fake, retries=8)
        monkeypatch.setattr(judge.given_up, "wait", lambda seconds: waits.append(seconds))
        with pytest.raises(RunError, match=r"does not answer \(500\) after 9 attempts; what was judged is kept: start the"):
            judge(CASE)
    assert len(waits) == 8
    for wait, most in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert most / 2 <= wait <= most
    assert len({wait / most for wait, most in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60], strict=True)}) > 1


def test_retry_after_holds_for_every_request():
    with endpoint(fails(429, "later", Retry_After="0.4")) as fake:
        judge = judge_at(fake)
        begun, replies = time.monotonic(), []
        threads = [threading.Thread(target=lambda: replies.append(judge(CASE)))]
        threads[0].start()
        while len(fake.requests) < 1 or judge._not_before == 0.0:
            time.sleep(0.005)
        threads.append(threading.Thread(target=lambda: replies.append(judge(CASE))))
        threads[1].start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun >= 0.4
        assert len(replies) == 2
        assert len(fake.requests) == 3


def test_an_hour_is_not_waited_for():
    with endpoint(fails(429, "come back tomorrow", Retry_After="86400")) as fake:
        with pytest.raises(RunError, match=r"answered 429: come back tomorrow and asks to wait 86,400 s; what was judged"):
            judge_at(fake)(CASE)
        assert len(fake.requests) == 1


def test_retry_after_is_seconds_or_a_date():
    assert asked_wait("7") == 7
    assert asked_wait("-3") == 0
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < asked_wait(soon) <= 30
    assert asked_wait("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert asked_wait(None) is asked_wait("soon") is asked_wait("nan") is None


def test_a_connection_that_is_refused_is_tried_again_and_then_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    judge = Endpoint(EndpointOptions(endpoint=f"http://127.0.0.1:{port}/v1", judge_model="x", retries=2))
    with pytest.raises(RunError, match=r"does not answer \(.*refused\) after 3 attempts"):
        judge(CASE)


def test_a_wait_ends_where_the_work_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT", 60.0)
    with endpoint(fails(500)) as fake:
        judge = judge_at(fake)
        threading.Timer(0.1, judge.given_up.set).start()
        with pytest.raises(Abandoned):
            judge(CASE)


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_ends_at_once_and_is_never_shown(monkeypatch, status):
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    with endpoint(fails(status, f"Incorrect API key provided: {KEY}.")) as fake:
        with pytest.raises(InputError) as caught:
            judge_at(fake, key_variable="MY_KEY")(CASE)
        assert fake.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert len(fake.requests) == 1
    assert str(caught.value) == (
        f"endpoint {fake.url}/chat/completions answered {status}: Incorrect API key provided: {HIDDEN}, and it does not "
        "accept "
        "the key; put a valid key into the environment variable MY_KEY."
    )


def test_a_missing_key_says_that_none_was_sent():
    with endpoint(fails(401, "no key")) as fake, pytest.raises(InputError, match=r"no key was sent; .* OPENAI_API_KEY\."):
        judge_at(fake)(CASE)


def test_a_judgement_that_repeats_the_key_is_kept_without_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with endpoint(says(f"The header was {KEY}. [[3]]")) as fake:
        assert judge_at(fake)(CASE).text == f"The header was {HIDDEN}. [[3]]"


def test_keys_come_from_the_environment(monkeypatch):
    assert key_of(None) is None
    with pytest.raises(InputError, match="key_variable NOBODYS_KEY is not set"):
        key_of("NOBODYS_KEY")
    monkeypatch.setenv("OPENAI_API_KEY", "two words\N{BULLET}")
    with pytest.raises(InputError, match="OPENAI_API_KEY holds characters that no key has") as caught:
        key_of(None)
    assert "words" not in str(caught.value)


@pytest.mark.parametrize("status", [404, 301])
def test_a_wrong_address_or_model_ends_at_once(status):
    with (
        endpoint(fails(status, "no model judge-1")) as fake,
        pytest.raises(InputError, match=rf"answered {status}: no model judge-1 to the model 'judge-1'; correct --endpoint"),
    ):
        judge_at(fake)(CASE)


def test_a_quota_that_is_used_up_is_not_asked_for_again():
    with endpoint(fails(429, "You exceeded your quota", code="insufficient_quota")) as fake:
        with pytest.raises(RunError, match="start the same command again once there is quota"):
            judge_at(fake)(CASE)
        assert len(fake.requests) == 1


def test_a_case_is_refused_alone_once_others_were_answered():
    with endpoint(fails(400, "unknown field")) as fake:
        judge = judge_at(fake)
        with pytest.raises(InputError, match="answered 400: unknown field to the first request; correct what it names"):
            judge(CASE)
        assert judge(CASE).refused is None
        fake.script.append(fails(413, "too long"))
        assert judge(CASE).refused == "413: too long"
        fake.script.append(says(None))
        assert judge(CASE).text == ""


def test_newer_models_are_given_the_options_that_they_take():
    with endpoint(
        fails(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        fails(400, "Unsupported value: 'temperature' does not support 0."),
    ) as fake:
        judge = judge_at(fake, retries=0, judge_tokens=9)
        assert judge(CASE).text == judge(CASE).text == "Rating: [[7]]"
        assert fake.requests[-1].keys() == {"model", "messages", "max_completion_tokens"}
        assert len(fake.requests) == 4


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://localhost:8000/v1", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1/chat/completions"),
        ("https://a.example/v1/chat/completions", "https://a.example/v1/chat/completions"),
        ("https://a.example/x?api-version=1", "https://a.example/x/chat/completions?api-version=1"),
        ("http://[::1]:80", "http://[::1]/chat/completions"),
    ],
)
def test_addresses(given, used):
    assert str(address_of(given)) == used


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("localhost:8000", "is no address"),
        ("ftp://a.example", "is no address of HTTP"),
        ("https://", "is no address of HTTP"),
        ("http://a:b:c", "is no address"),
        ("https://me:secret@a.example/v1", "holds a name or password"),
    ],
)
def test_addresses_that_are_none(given, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        address_of(given)
    assert "secret" not in str(caught.value)


def test_the_judges_model_must_be_named():
    with pytest.raises(InputError, match="endpoint needs the name of the model"):
        Endpoint(EndpointOptions(endpoint="http://localhost/v1"))

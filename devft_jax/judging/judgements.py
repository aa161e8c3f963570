"""Judgements: which are wanted, those that a file has, and the others from a judge.

A line has FastChat's fields, `tokens` besides, and a `digest` of everything that the judge is given: a case whose digest is
in the file is not judged again. A pair is two games, in the second of which the judge sees the answers in the other order.

    single   question_id, model, judge, user_prompt, judgment, score (-1 without a verdict), turn, tstamp
    pair     question_id, model_1, model_2, g1_winner, g2_winner, judge, g1_user_prompt, g1_judgment, ..., turn, tstamp
"""

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any

from devft_jax.errors import InputError
from devft_jax.harness.meter import Meter
from devft_jax.judging.cases import HIGHEST, LOWEST, Abandoned, Case, Judge, Mode, Reply, is_readable, rating_of, winner_of
from devft_jax.judging.lines import GrowingLines
from devft_jax.judging.prompts import JudgePrompt, to_case
from devft_jax.judging.questions import Answers, Question
from devft_jax.reporting import Progress
from devft_jax.runtime.stopping import StopRequest

WINNERS = ("model_1", "model_2", "tie", "error")
"""What FastChat calls the outcome of a game; "error" is a judgement without a verdict."""

NO_SCORE = -1
"""FastChat's score of a judgement without a verdict."""

LOOK = 0.5
"""Seconds between two looks for a request to stop."""


@dataclass(frozen=True)
class Wanted:
    """A judgement that is wanted: of one answer, or of a pair in both orders.

    Attributes:
      question: that was answered.
      turn: which turn of it is judged.
      models: the model, or both models of a pair.
      cases: what the judge is asked: once, or in both orders.
      digest: of the judge's name and the cases.
    """

    question: Question
    turn: int
    models: tuple[str, ...]
    cases: tuple[Case, ...]
    digest: str


@dataclass(frozen=True)
class Said:
    """What a judge said about a case, after as many attempts as it took.

    Attributes:
      text: the last judgement.
      readable: whether it has a verdict.
      requests: how often the judge was asked.
      prompt_tokens: of all requests that it counted.
      completion_tokens: of all requests that it counted.
      uncounted: requests whose tokens it did not count.
      refused: why it would not judge; None where it did.
    """

    text: str
    readable: bool
    requests: int
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    refused: str | None = None


@dataclass(frozen=True)
class Spent:
    """What judgements took.

    Attributes:
      requests: that were answered.
      repeated: of these, those asked again because a judgement had no verdict.
      prompt_tokens: read by the judge.
      completion_tokens: written by the judge.
      uncounted: requests whose tokens the judge did not count.
    """

    requests: int = 0
    repeated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0

    def cost(self, price_in: float | None, price_out: float | None) -> float | None:
        """The cost; None without prices.

        Args:
          price_in: of a million tokens read.
          price_out: of a million tokens written.
        """
        if price_in is None and price_out is None:
            return None
        return ((price_in or 0) * self.prompt_tokens + (price_out or 0) * self.completion_tokens) / 1e6


def wanted_judgements(
    judge_name: str,
    judged: Sequence[tuple[Answers, ...]],
    questions: Sequence[Question],
    references: Answers | None,
    prompts: Mapping[str, JudgePrompt] | None,
) -> Iterator[Wanted]:
    """The judgements of every turn of every model's answers, or of every pair's.

    Args:
      judge_name: of the judge.
      judged: the answers of a model alone, which are rated; or of two models, which are compared in both orders.
      questions: that were answered.
      references: the reference answers, where there are any.
      prompts: of the judge, by name; None for a judge that needs none.
    """
    for question in questions:
        for turn in range(1, len(question.turns) + 1):
            for models in judged:
                names = tuple(model.model for model in models)
                answers = [model.turns[question.id] for model in models]
                mode: Mode = "single" if len(models) == 1 else "pairwise"
                orders = [answers] if len(models) == 1 else [answers, answers[::-1]]
                cases = tuple(to_case(mode, question, turn, order, references, prompts) for order in orders)
                yield Wanted(question, turn, names, cases, _digest(judge_name, names, cases))


def _digest(judge_name: str, models: Sequence[str], cases: Sequence[Case]) -> str:
    text = json.dumps([judge_name, list(models), [asdict(case) | {"question": case.question.turns} for case in cases]])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def judge_all(
    wanted: Sequence[Wanted],
    judge: Judge,
    judge_name: str,
    file: GrowingLines,
    *,
    tries: int,
    concurrency: int,
    progress: Progress,
    what: str,
    stop: StopRequest,
    give_up: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """All judgements that are wanted; those that the file has are not asked for again.

    Args:
      wanted: the judgements.
      judge: that is asked.
      judge_name: for the file.
      file: of judgements of this mode and judge.
      tries: how often the judge is asked until a judgement has a verdict.
      concurrency: most judgements under way.
      progress: shows how much is done.
      what: the judgements are, for the progress.
      stop: asks for an end; judgements under way are finished.
      give_up: called where a judgement failed for good or a stop was requested, so that others end their waits.

    Returns:
      The line of each, in order.

    Raises:
      InputError: the judge cannot be asked, or the file is damaged.
      RunError: the judge fails, or the file cannot be written.
      Stopped: a stop was requested; what was judged is in the file.
    """
    known = {row["digest"]: _checked(row, where) for where, row in file.read() if isinstance(row.get("digest"), str)}
    missing = [each for each in wanted if each.digest not in known]
    meter = Meter(progress, what, len(wanted), len(wanted) - len(missing))
    kept = itertools.count(1)

    def keep(one: Wanted, replies: Sequence[Said]) -> None:
        row = _row(one, judge_name, replies)
        file.append(row)
        known[one.digest] = row
        meter.advance(1, next(kept) / len(missing))

    _ask_all(missing, lambda one: [ask(judge, case, tries) for case in one.cases], keep, concurrency, stop, give_up)
    return [known[each.digest] for each in wanted]


def _ask_all(
    wanted: Sequence[Wanted],
    work: Callable[[Wanted], list[Said]],
    keep: Callable[[Wanted, Sequence[Said]], None],
    concurrency: int,
    stop: StopRequest,
    give_up: Callable[[], None],
) -> None:
    """Do the work of each on threads and keep what is finished, in this thread; the first failure ends all."""
    waiting = iter(wanted)
    under_way: dict[Future[list[Said]], Wanted] = {}
    failure: BaseException | None = None
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="devft-judge")
    try:
        while True:
            while len(under_way) < concurrency and failure is None and stop.signal is None:
                one = next(waiting, None)
                if one is None:
                    break
                under_way[pool.submit(work, one)] = one
            if not under_way:
                break
            # What is under way at a failure may have been paid for: it is waited for and kept.
            finished, _ = wait(under_way, timeout=LOOK, return_when=FIRST_COMPLETED)
            for future in finished:
                one = under_way.pop(future)
                error = future.exception()
                if error is None:
                    keep(one, future.result())
                elif failure is None and not isinstance(error, Abandoned):
                    failure = error
                    give_up()
            if stop.signal is not None:
                give_up()
    except BaseException:
        give_up()
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()
    if failure is not None:
        raise failure
    stop.check()


def ask(judge: Judge, case: Case, tries: int) -> Said:
    """Ask a judge until its judgement has a verdict.

    Args:
      judge: that is asked.
      case: what it is asked.
      tries: how often at most.
    """
    replies: list[Reply] = []
    for _ in range(tries):
        replies.append(judge(case))
        if replies[-1].refused is not None or is_readable(case, replies[-1].text):
            break
    last = replies[-1]
    counted = [reply for reply in replies if reply.prompt_tokens is not None and reply.completion_tokens is not None]
    return Said(
        text=last.text,
        readable=last.refused is None and is_readable(case, last.text),
        requests=len(replies),
        prompt_tokens=sum(reply.prompt_tokens or 0 for reply in counted),
        completion_tokens=sum(reply.completion_tokens or 0 for reply in counted),
        uncounted=len(replies) - len(counted),
        refused=last.refused,
    )


def _row(wanted: Wanted, judge_name: str, replies: Sequence[Said]) -> dict[str, Any]:
    """The line of a judgement."""
    case = wanted.cases[0]
    texts = [f"[refused] {said.refused}" if said.refused is not None else said.text for said in replies]
    row: dict[str, Any] = {"question_id": wanted.question.id}
    judged_by = [judge_name, case.prompt_name]
    if case.mode == "single":
        rating = rating_of(replies[0].text) if replies[0].readable else None
        row |= {"model": wanted.models[0], "judge": judged_by, "user_prompt": case.user_prompt, "judgment": texts[0]}
        row["score"] = NO_SCORE if rating is None else rating
    else:
        row |= {"model_1": wanted.models[0], "model_2": wanted.models[1]}
        row |= {f"g{number}_winner": _winner(said, number) for number, said in enumerate(replies, 1)}
        row["judge"] = judged_by
        for number, (each, text) in enumerate(zip(wanted.cases, texts, strict=True), 1):
            row |= {f"g{number}_user_prompt": each.user_prompt, f"g{number}_judgment": text}
    counts = ("requests", "prompt_tokens", "completion_tokens", "uncounted")
    tokens = {name: sum(getattr(said, name) for said in replies) for name in counts}
    return row | {"turn": wanted.turn, "tstamp": time.time(), "tokens": tokens, "digest": wanted.digest}


def _winner(said: Said, game: int) -> str:
    """The outcome of a game: in the first, answer A is the first model's, in the second the second's."""
    winner = winner_of(said.text) if said.readable else None
    names = ("model_1", "model_2") if game == 1 else ("model_2", "model_1")
    return {"A": names[0], "B": names[1], "tie": "tie", None: "error"}[winner]


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A line that a file has, `InputError` where it is none of ours."""
    score = row.get("score")
    rated = isinstance(score, int | float) and (score == NO_SCORE or LOWEST <= score <= HIGHEST)
    compared = all(row.get(name) in WINNERS for name in ("g1_winner", "g2_winner"))
    if not (rated or compared) or not isinstance(row.get("tokens"), dict):
        raise InputError(f"{where} is no judgement that was written here; remove the line.")
    return row


def spent_on(rows: Sequence[Mapping[str, Any]]) -> Spent:
    """What judgements took.

    Args:
      rows: their lines.
    """
    tokens = [row["tokens"] for row in rows]

    def total(name: str) -> int:
        return sum(int(each.get(name, 0)) for each in tokens)

    games = sum(2 if "g1_winner" in row else 1 for row in rows)
    requests = total("requests")
    return Spent(
        requests, requests - games, total("prompt_tokens"), total("completion_tokens"), uncounted=total("uncounted")
    )

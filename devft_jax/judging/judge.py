"""`devft judge`: answers to a benchmark's open questions, judged; every call continues in the same folder.

model_answer/NAME.jsonl            answers of each model (FastChat's layout)
model_judgment/JUDGE_single.jsonl  ratings, JUDGE_pair.jsonl comparisons (FastChat's layout)
results.json, results.txt          the figures
"""

import gc
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from devft_jax.inference.options import SelectionOptions
from devft_jax.judging.answering import Asked, answer_questions
from devft_jax.judging.cases import Mode
from devft_jax.judging.judgements import Spent, judge_all, spent_on, wanted_judgements
from devft_jax.judging.lines import GrowingLines
from devft_jax.judging.options import AnswerOptions, AskedOptions, EndpointOptions, JudgeOptions, OpeningOptions
from devft_jax.judging.questions import Answers
from devft_jax.judging.request import Judging, Request, Source, check_request, open_source
from devft_jax.judging.results import Results, results_of
from devft_jax.judging.tables import to_plain, to_text
from devft_jax.reporting import Progress
from devft_jax.runtime.processes import refuse_several
from devft_jax.runtime.stopping import Stopped, StopRequest
from devft_jax.storage.ownership import JUDGED
from devft_jax.storage.run_folder import RunFolder


@dataclass(frozen=True)
class Judged:
    """What a call has made.

    Attributes:
      folder: where everything lies.
      answers: of each model; empty where the call was stopped.
      results: the figures; None if questions were only answered or the call was stopped.
      text: the results for a terminal; empty without results.
      stopped_by: the number of the signal that stopped it; None where it went to its end.
    """

    folder: Path
    answers: Sequence[Answers] = ()
    results: Results | None = None
    text: str = ""
    stopped_by: int | None = None


def judge(
    what: Sequence[str],
    asked: AskedOptions,
    *,
    selection: SelectionOptions | None = None,
    opening: OpeningOptions | None = None,
    answering: AnswerOptions | None = None,
    judging: JudgeOptions | None = None,
    endpoint: EndpointOptions | None = None,
    progress: Progress | None = None,
) -> Judged:
    """Answer questions with models, and have the answers judged; what an earlier call did is not done again.

    Args:
      what: the models as `open_respondent` takes them, and files of answers in FastChat's layout.
      asked: questions, names and the folder.
      selection: which models of runs, and which base.
      opening: how models are opened.
      answering: how answers are sampled.
      judging: who judges, and how.
      endpoint: where.
      progress: shows how much is done.

    Returns:
      The results, or what stopped the call.

    Raises:
      InputError: the request is wrong, or the endpoint does not accept it; what was done is kept.
      RunError: the judge fails, or a file cannot be written; what was done is kept.
    """
    refuse_several("judging")
    progress = progress or Progress()
    selection, opening = selection or SelectionOptions(), opening or OpeningOptions()
    answering = answering or AnswerOptions()
    judging, endpoint = judging or JudgeOptions(), endpoint or EndpointOptions()
    request = check_request(what, asked, selection, opening, answering, judging, endpoint, progress)
    stop = StopRequest(progress.say, may_exit=True)
    with RunFolder(asked.out, JUDGED) as folder, stop.listening():
        work = _Work(folder, request, stop, progress)
        try:
            work.begin(asked.questions)
            answers = [work.answers(source, selection, opening, answering) for source in request.sources]
            if request.judging is None:
                return Judged(folder.path, answers)
            rows = work.judgements(request.judging, answers, judging.verdict_tries)
        except Stopped:
            progress.say("stopped; what was answered and judged is kept; the same command resumes from there.")
            return Judged(folder.path, stopped_by=stop.signal)
        finally:
            if request.judging is not None and request.judging.endpoint is not None:
                request.judging.endpoint.close()
        results, text = work.finish(request.judging, rows, endpoint)
        return Judged(folder.path, answers, results, text)


class _Work:
    """The steps of a call.

    Args:
      folder: of the call, locked.
      request: what is asked for.
      stop: asks for an end.
      progress: shows how much is done.
    """

    def __init__(self, folder: RunFolder, request: Request, stop: StopRequest, progress: Progress) -> None:
        self.folder, self.request, self.stop, self.progress = folder, request, stop, progress
        self._facts: dict[str, Any] = {}

    def begin(self, questions: str) -> None:
        """Mark the folder as one of judgements."""
        judging = self.request.judging
        self._facts = {
            "questions": str(Path(questions).expanduser().absolute()),
            "models": {source.name: source.what for source in self.request.sources},
            "judge": None if judging is None else judging.name,
            "endpoint": None if judging is None or judging.endpoint is None else judging.endpoint.shown,
        }
        self.folder.write_json("results.json", self._facts | {"results": None})

    def answers(
        self, source: Source, selection: SelectionOptions, opening: OpeningOptions, options: AnswerOptions
    ) -> Answers:
        """The answers of a model: those of its file, or generated."""
        if source.answers is not None:
            return source.answers
        with self.progress.doing(f"opening {source.what}"):
            asked = Asked.of(source.name, open_source(source, selection, opening), options)
        self.stop.doing = "the answers being generated"
        file = GrowingLines(self.folder.path / "model_answer" / f"{source.name}.jsonl")
        found = answer_questions(asked, self.request.questions, file, self.progress, self.stop)
        self.progress.say(f"  answers of {source.name}: {len(found.turns)}/{len(found.turns)}  {file.path}")
        self.stop.doing = None
        # The next model needs the memory of this one.
        del asked
        gc.collect()
        return found

    def judgements(self, judging: Judging, answers: Sequence[Answers], tries: int) -> dict[str, list[dict[str, Any]]]:
        """The judgements by mode."""
        request = self.request
        baseline = next(each for each in answers if each.model == request.baseline)
        judged: dict[Mode, list[tuple[Answers, ...]]] = {
            "single": [(each,) for each in answers],
            "pairwise": [(each, baseline) for each in answers if each is not baseline],
        }
        self.stop.doing = "the judgements being made"
        rows: dict[str, list[dict[str, Any]]] = {}
        for mode in judging.modes:
            ending = "single" if mode == "single" else "pair"
            name = re.sub(r"[^\w.-]", "_", f"{judging.name}_{ending}.jsonl")
            said = "ratings" if mode == "single" else "comparisons"
            rows[mode] = judge_all(
                list(wanted_judgements(judging.name, judged[mode], request.questions, judging.references, judging.prompts)),
                judging.judge,
                judging.name,
                GrowingLines(self.folder.path / "model_judgment" / name),
                tries=tries,
                concurrency=judging.concurrency,
                progress=self.progress,
                what=f"{said} by {judging.name}",
                stop=self.stop,
                give_up=judging.endpoint.given_up.set if judging.endpoint is not None else lambda: None,
            )
        return rows

    def finish(
        self, judging: Judging, rows: Mapping[str, Sequence[Mapping[str, Any]]], endpoint: EndpointOptions
    ) -> tuple[Results, str]:
        """The results, written to the folder."""
        names = [source.name for source in self.request.sources]
        singles, pairs = rows.get("single", ()), rows.get("pairwise", ())
        results = results_of(names, self.request.baseline, self.request.questions, singles, pairs)
        spent: Spent = spent_on([*singles, *pairs])
        cost = spent.cost(endpoint.price_in, endpoint.price_out)
        text = to_text(results, judging.name, spent, cost)
        self.folder.write_text("results.txt", text)
        plain = {"results": to_plain(results), "spent": asdict(spent) | {"cost": cost}}
        self.folder.write_json("results.json", self._facts | plain)
        return results, text

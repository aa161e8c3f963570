"""The options of `devft judge`: what is asked, how answers are sampled, and who judges them."""

from dataclasses import dataclass
from typing import Literal

from devft_jax.models.generation.options import GenerationOptions
from devft_jax.options import execution, option, path, verbatim

TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
"""FastChat's temperature of each category; 0.7 for all others."""
OTHER_TEMPERATURE = 0.7

KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass(frozen=True, kw_only=True)
class AskedOptions:
    """Questions, and where everything goes."""

    questions: str = path()
    """File of questions in FastChat's layout, such as question.jsonl of Vicuna-Bench or MT-Bench."""
    out: str = path()
    """Folder of answers, judgements and results; absent, empty, or from an earlier call, which is continued."""
    names: tuple[str, ...] | None = option(None)
    """Names of the models in tables and files, one for each; by default those of their folders."""
    limit: int | None = option(None, at_least=1)
    """Number of questions of each category, the first ones; by default all."""


@dataclass(frozen=True, kw_only=True)
class OpeningOptions:
    """How the models are opened, where that is to differ from what their folders say."""

    template: str | None = None
    """Wording of a conversation: a template of `devft list`; by default a run's own, the chat template of other models."""
    quantization: Literal["none", "int8", "int4", "nf4"] | None = None
    """Storage of the frozen projections; by default as in the run, none for other models."""
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """Precision of activations and frozen weights; by default as in the run, auto (float32 on CPU) for other models."""


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How answers are sampled."""

    max_new_tokens: int = option(1024, at_least=1)
    """Maximum tokens of an answer; fewer where the conversation leaves less room in the model."""
    temperatures: Literal["greedy", "fastchat"] = "greedy"
    """Greedy, or FastChat's by category: writing and roleplay 0.7, stem and humanities 0.1, extraction, math, coding and
    reasoning 0, others 0.7."""
    sampling_seed: int = option(0, within="[0, 2^32)")
    """Seed of the sampled tokens; no effect where answers are greedy."""
    stop: tuple[str, ...] = verbatim(())
    """Texts that end an answer; they are removed from it."""
    generation_batch: int = execution(16, at_least=1)
    """Maximum number of questions answered at once."""

    def temperature(self, category: str) -> float:
        """The temperature at which a question is answered.

        Args:
          category: of the question.
        """
        return 0.0 if self.temperatures == "greedy" else TEMPERATURES.get(category, OTHER_TEMPERATURE)

    def generation(self, category: str) -> GenerationOptions:
        """The options of generation for a question.

        Args:
          category: of the question.
        """
        return GenerationOptions(
            temperature=self.temperature(category),
            sampling_seed=self.sampling_seed,
            stop=self.stop,
            generation_batch=self.generation_batch,
        )


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Who judges, and how."""

    judge: str | None = None
    """Your own judge as package.module:name, a function of a Case; without it and without --endpoint, the questions are
    answered but not judged."""
    mode: Literal["single", "pairwise", "both"] = "single"
    """Single (every answer rated from 1 to 10), pairwise (every model's answers beside the baseline's, in both orders), or
    both."""
    baseline: str | None = None
    """Name of the model that the others are compared with; by default the first."""
    judge_prompts: str | None = path(None)
    """The judge's prompts in FastChat's layout; by default judge_prompts.jsonl beside the questions."""
    references: str | None = path(None)
    """Reference answers in FastChat's layout; by default reference_answer_gpt-4.jsonl beside the questions."""
    verdict_tries: int = option(3, at_least=1, at_most=100)
    """How often a judge is asked about an answer until its judgement has a verdict."""
    concurrency: int | None = execution(None, at_least=1, at_most=1024)
    """Maximum number of judgements at once; by default 4 at an endpoint, 1 with your own judge."""


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """An endpoint that judges."""

    endpoint: str | None = None
    """Address of an OpenAI-compatible endpoint, such as https://api.openai.com/v1 or http://localhost:8000/v1."""
    judge_model: str | None = None
    """Name of the model that judges there, such as gpt-4."""
    key_variable: str | None = None
    """Environment variable that holds the endpoint's key; by default OPENAI_API_KEY, and no key where that is not set."""
    judge_tokens: int = option(2048, at_least=1)
    """Maximum tokens of a judgement."""
    timeout: float = execution(120.0, above=0)
    """Seconds until a request that has no complete answer is sent again."""
    retries: int = execution(6, at_least=0, at_most=1000)
    """How often a request is sent again after it failed, with waits that double from 1 s to 60 s."""
    price_in: float | None = execution(None, at_least=0)
    """Price of a million tokens that the judge reads, for the cost."""
    price_out: float | None = execution(None, at_least=0)
    """Price of a million tokens that the judge writes, for the cost."""

"""A model of this package as a backend of lm-evaluation-harness, within the process.

What makes scores equal to those of the harness's own Hugging Face backend: texts become tokens as there
(`devft_jax.harness.encoding`), what is too long is cut on the left, and the log-softmax is in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from devft_jax.errors import InputError
from devft_jax.harness import NEEDS_LM_EVAL
from devft_jax.harness.encoding import TextEncoder
from devft_jax.harness.meter import Meter
from devft_jax.harness.rows import ScoringRequest, Tokens
from devft_jax.harness.scoring import LogLikelihood, Scorer
from devft_jax.harness.store import RequestStore, request_key
from devft_jax.harness.text_batches import batches
from devft_jax.harness.texts import TextRequest, fitted, text_options
from devft_jax.models.adapter import Adapter
from devft_jax.models.generation.generate import generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.model import Model
from devft_jax.models.llama import DEFAULT_COMPUTE, Compute
from devft_jax.models.packed_attention import Prefix
from devft_jax.reporting.progress import Progress

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise InputError(NEEDS_LM_EVAL) from error


class LanguageModel(TemplateLM):
    """Answers the harness's requests with a model of this package.

    Args:
      model: the base with its tokenizer.
      adapter: low-rank updates of it, or None.
      eos_ids: tokens that end a text, besides the tokenizer's eos.
      compute: execution choices.
      devices: that share the work; by default all local ones.
      store: finished requests of this model, which are not computed again; None stores none.
      progress: the progress output; None for none.
      batch: most texts drawn at once.
      seed: of drawn texts.

    Attributes:
      backend: "causal", by which lm-eval tells models that continue a text.
      tokenizer: of the model.
      computed: how many requests were computed.
      kept: how many were answered from the store.

    Raises:
      InputError: the model has no tokenizer, or an adapter that a hypernetwork makes.
    """

    backend = "causal"

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None = None,
        *,
        eos_ids: Sequence[int] = (),
        compute: Compute = DEFAULT_COMPUTE,
        devices: Sequence[jax.Device] | None = None,
        store: RequestStore | None = None,
        progress: Progress | None = None,
        batch: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = model.tokenizer
        self.scorer = Scorer(model.config, model.base, adapter, compute=compute, devices=devices)
        eos = self.tokenizer.eos_token_id
        self.eos_ids = tuple(dict.fromkeys([*eos_ids, *([] if eos is None else [eos])]))
        self.encoder = TextEncoder(self.tokenizer, self.prefix_token_id)
        self.store, self.progress = store, progress
        self.batch, self.seed = batch, seed
        self.computed = self.kept = 0

    @property
    def max_length(self) -> int:
        """Most tokens that the model reads."""
        return self.model.config.max_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text.

        Raises:
          InputError: there is none.
        """
        if not self.eos_ids:
            raise InputError("the model's tokenizer has no token that ends a text; give it an eos_token.")
        return self.eos_ids[0] if self.tokenizer.eos_token_id is None else self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token behind which a text without a context is scored: the bos, else the eos."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name, for the harness's own caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as one prompt.

        Args:
          chat_history: messages, each with `role` and `content`.
          add_generation_prompt: whether the prompt ends where an answer begins; otherwise inside the last message.

        Raises:
          InputError: the tokenizer has no chat template.
        """
        if self.tokenizer.chat_template is None:
            raise InputError("the model's tokenizer has no chat template; leave apply_chat_template out, or give it one.")
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids of a text.

        Args:
          string: the text.
          add_special_tokens: whether the tokenizer's leading tokens are put before it; by default as the tokenizer does it,
            but not where the text begins with its bos already.
          **kwargs: not used.
        """
        return self.encoder.encode([string], add_special_tokens)[string].tolist()

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """The log-likelihood of each request's continuation, and whether greedy decoding would give it.

        Args:
          requests: with (context, continuation) as `args`.
          disable_tqdm: not used; progress is reported to `progress`.

        Raises:
          InputError: a continuation is longer than the model reads.
        """
        texts = [request.args for request in requests]
        scored = []
        cut = 0
        for context, continuation in self.encoder.pairs(texts):
            scored.append(self._scoring_request(context, continuation))
            cut += len(context) + len(continuation) > self.max_length + 1
        self._note_cut(cut, len(texts))

        def done(number: int, answer: tuple[float, bool]) -> None:
            self.cache_hook.add_partial("loglikelihood", texts[number], answer)

        return self._log_likelihoods("log-likelihoods", scored, done)

    def _note_cut(self, cut: int, total: int) -> None:
        """Say where prompts are longer than the model reads."""
        if cut and self.progress is not None:
            self.progress.warn(
                f"{cut:,} of {total:,} prompts are longer than the {self.max_length:,} tokens that the model reads together "
                "with their answers; their beginnings are cut off"
            )

    def _scoring_request(self, context: Tokens, continuation: Tokens) -> ScoringRequest:
        return ScoringRequest.of(context, continuation, self.max_length)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, Sequence[int], Sequence[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """`loglikelihood` of (texts, context, continuation), the last two as token ids."""
        scored = [self._scoring_request(context, continuation) for _, context, continuation in requests]
        return self._log_likelihoods("log-likelihoods", scored, lambda number, answer: None)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each request's whole text, in windows as long as the model reads.

        Args:
          requests: with (text,) as `args`.
          disable_tqdm: not used.
        """
        texts = [request.args[0] for request in requests]
        tokens = self.encoder.encode(texts)
        windows, owners = [], []
        for number, text in enumerate(texts):
            rolling = get_rolling_token_windows(tokens[text].tolist(), self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, rolling):
                windows.append(self._scoring_request(*window))
                owners.append(number)
        sums = [0.0] * len(texts)
        for owner, (value, _) in zip(owners, self._log_likelihoods("texts", windows, lambda *_: None), strict=True):
            sums[owner] += value
        for text, value in zip(texts, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), value)
        return sums

    def _log_likelihoods(
        self, what: str, requests: list[ScoringRequest], done: Callable[[int, tuple[float, bool]], None]
    ) -> list[tuple[float, bool]]:
        """Answers in the requests' order; `done` is called with each as soon as it is there and kept."""
        keys = [request_key("log-likelihood", request.tokens, request.scored) for request in requests]
        answers, missing = self._from_store(keys)
        for number, answer in answers.items():
            done(number, (answer[0], answer[1]))
        meter = Meter(self.progress, what, len(requests), len(answers))
        tokens = 0
        for step in self.scorer.steps([requests[number] for number in missing]):
            found: dict[int, LogLikelihood] = {missing[index]: answer for index, answer in step.answers.items()}
            new = {number: (answer.value, answer.greedy) for number, answer in found.items()}
            self._keep({keys[number]: list(answer) for number, answer in new.items()})
            answers |= new
            self.computed += len(new)
            for number, pair in new.items():
                done(number, pair)
            tokens += step.tokens
            meter.advance(len(new), tokens / max(step.total, 1))
        return [(answers[number][0], answers[number][1]) for number in range(len(requests))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A text behind each request's context, up to what ends it.

        Args:
          requests: with (context, settings of generation) as `args`.
          disable_tqdm: not used.

        Raises:
          InputError: a setting that is not supported.
        """
        prompts = self.encoder.encode(request.args[0] for request in requests)
        asked: list[TextRequest] = []
        times: dict[tuple[str, GenerationOptions], int] = {}
        cut = 0
        for request in requests:
            context, settings = request.args
            tokens, options = fitted(
                prompts[context], text_options(settings, batch=self.batch, seed=self.seed), self.max_length
            )
            cut += len(tokens) < len(prompts[context])
            if not len(tokens):
                tokens = np.array([self.prefix_token_id], np.int32)
            repeat = times[context, options] = times.get((context, options), -1) + 1
            # A greedy text is the same however often it is asked for.
            asked.append(TextRequest(tokens, options, repeat if options.temperature else 0))

        self._note_cut(cut, len(asked))

        def done(number: int, text: str) -> None:
            self.cache_hook.add_partial("generate_until", requests[number].args, text)

        return self._texts(asked, done)

    def _texts(self, requests: list[TextRequest], done: Callable[[int, str], None]) -> list[str]:
        """Texts in the requests' order; `done` is called with each as soon as it is there and kept."""
        keys = [request_key("text", request.tokens, request.settings | {"eos": self.eos_ids}) for request in requests]
        answers, missing = self._from_store(keys)
        for number, text in answers.items():
            done(number, text)
        meter = Meter(self.progress, "texts", len(requests), len(answers))
        # Requests with one key have one answer.
        first = {keys[number]: number for number in reversed(missing)}
        single = sorted(first.values())
        finished = 0
        shared = np.zeros(0, np.int32)
        prefix: Prefix | None = None
        for batch in batches(requests, single):
            if not np.array_equal(batch.shared, shared):
                shared = batch.shared
                prefix = self.scorer.prefix_of(shared) if len(shared) else None
            numbers = batch.numbers
            texts = self._generated([requests[number] for number in numbers], prefix)
            self._keep({keys[number]: text for number, text in zip(numbers, texts, strict=True)})
            answers |= dict(zip(numbers, texts, strict=True))
            self.computed += len(numbers)
            for number, text in zip(numbers, texts, strict=True):
                done(number, text)
            finished += len(numbers)
            meter.advance(len(numbers), finished / len(single))
        return [answers[number if number in answers else first[keys[number]]] for number in range(len(requests))]

    def _generated(self, requests: Sequence[TextRequest], prefix: Prefix | None) -> list[str]:
        """Texts of requests with equal options; `prefix` is the cache of a beginning of all prompts."""
        completions = generate(
            self.model.config,
            self.scorer.base,
            self.scorer.adapter,
            [request.tokens.tolist() for request in requests],
            options=requests[0].options,
            eos_ids=self.eos_ids,
            tokenizer=self.tokenizer,
            compute=self.scorer.compute,
            row_ids=[request.row for request in requests],
            placement=self.scorer.divided if self.scorer.mesh.size > 1 else None,
            prefix=prefix,
        )
        return [completion.text or "" for completion in completions]

    def _from_store(self, keys: Sequence[str]) -> tuple[dict[int, Any], list[int]]:
        """The answers that are kept, by the requests' numbers, and the numbers of the others."""
        store = self.store
        answers = {} if store is None else {number: store[key] for number, key in enumerate(keys) if key in store}
        self.kept += len(answers)
        return answers, [number for number in range(len(keys)) if number not in answers]

    def _keep(self, answers: Mapping[str, Any]) -> None:
        if self.store is not None:
            self.store.add(answers)

"""A model that answers prompts: loaded from a run, an adapter with its base, or a model, with prompts worded as in
training."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from devft_jax.config.execution import ExecutionOptions, resolve_compute, validate_execution
from devft_jax.config.run_config import RunConfig
from devft_jax.data import Record
from devft_jax.data.answer_ends import ends_of_template
from devft_jax.data.encoding import prompt_tokens
from devft_jax.data.prompts import find_template, prompt_text, renderer, resolve_template
from devft_jax.errors import InputError
from devft_jax.inference.options import ModelOptions, SelectionOptions
from devft_jax.inference.selected import Selected, select
from devft_jax.models.adapter import Adapter
from devft_jax.models.generation.answers import Completion
from devft_jax.models.generation.generate import Listener, check_prompts, generate
from devft_jax.models.generation.options import GenerationOptions
from devft_jax.models.huggingface.end_tokens import end_token_ids
from devft_jax.models.huggingface.model import Model
from devft_jax.models.llama import Compute
from devft_jax.runtime.processes import refuse_several


@dataclass(frozen=True)
class Respondent:
    """A loaded model that answers records.

    Attributes:
      source: which model this is.
      model: the base with its tokenizer.
      adapter: the trained adapter; None for the base alone.
      template: how records are worded.
      fields: names of a record's fields by role.
      eos_ids: ids of the tokens that end its answers.
      compute: precision and kernels.
    """

    source: Selected
    model: Model
    adapter: Adapter | None
    template: str
    fields: Mapping[str, str]
    eos_ids: tuple[int, ...]
    compute: Compute

    @property
    def bare(self) -> "Respondent":
        """The same model without its adapter."""
        return dataclasses.replace(self, adapter=None)

    def prompt(self, record: Record) -> str:
        """The text that the model receives for a record.

        Args:
          record: its output is not used.
        """
        return prompt_text(record, self.template, self.model.tokenizer)

    def tokens(self, record: Record) -> list[int]:
        """The prompt's token ids, as in training.

        Args:
          record: its output is not used.
        """
        return prompt_tokens(record, self.model.tokenizer, self.template)

    def check(self, records: Sequence[Record], options: GenerationOptions) -> None:
        """Check that every record can be answered.

        Args:
          records: the records to answer.
          options: how answers are sampled.

        Raises:
          InputError: a record cannot be answered; the message gives its number.
        """
        check_prompts(self.model.config, [self.tokens(record) for record in records], range(len(records)), options)

    def answer(
        self,
        records: Sequence[Record],
        options: GenerationOptions,
        *,
        first: int = 0,
        listen: Listener | None = None,
    ) -> list[Completion]:
        """Answer records.

        Args:
          records: the records to answer.
          options: how answers are sampled.
          first: number of the first record, from which the random draws are derived.
          listen: called with the text of an answer as it is generated.

        Returns:
          One completion per record.

        Raises:
          InputError: a prompt does not fit the model.
        """
        return generate(
            self.model.config,
            self.model.base,
            self.adapter,
            [self.tokens(record) for record in records],
            options=options,
            eos_ids=self.eos_ids,
            tokenizer=self.model.tokenizer,
            compute=self.compute,
            row_ids=range(first, first + len(records)),
            listen=listen,
        )


def open_respondent(
    source: str, options: ModelOptions, selection: SelectionOptions | None = None, *, compare: bool = False
) -> Respondent:
    """Load the model that answers; every command loads a model given by the user through this function.

    Args:
      source: a run's folder, a model's folder, a PEFT adapter's (with the base that it names), a Hugging Face name, or
        "bundled".
      options: override the settings in the run's folder.
      selection: which model of the source; by default its newest.
      compare: whether the model will also answer without its adapter.

    Returns:
      The model, loaded.

    Raises:
      InputError: there is no such source, it cannot be read, or the options do not fit it.
    """
    refuse_several("answering")
    selected = select(source, selection or SelectionOptions(), adapter=options.adapter)
    if compare and selected.adapter is None:
        raise InputError(
            f"compare needs an adapter, but {source} is neither a run's folder nor an adapter's; name one, or add --adapter."
        )
    run = selected.run
    config = RunConfig(template="completion") if run is None else run.config
    find_template(options.template or config.template)
    execution = ExecutionOptions(dtype=options.dtype or config.dtype)
    validate_execution(execution)
    compute = resolve_compute(execution)
    model = selected.load(quantization=options.quantization, dtype=compute.dtype)
    assert model.folder is not None
    template = options.template or (run.template if run is not None else config.template)
    template = resolve_template(template, conversational=True, tokenizer=model.tokenizer)
    renderer(template, model.tokenizer)  # refuses a chat template that is not there, before anything is asked
    ends = [*end_token_ids(model.folder, model.tokenizer), *ends_of_template(template, model.tokenizer)]
    ends += selected.ends(lambda: model.tokenizer)
    # A checkpoint's adapter was read into host memory.
    adapter = jax.tree.map(jnp.asarray, jax.device_get(selected.adapter))
    return Respondent(selected, model, adapter, template, config.fields or {}, tuple(dict.fromkeys(ends)), compute)

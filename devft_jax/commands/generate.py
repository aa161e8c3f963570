"""Asking a model: `devft generate` on a run's folder, a model's folder or a Hugging Face name, with and without an adapter.

A run knows its model, its prompt template and its adapter; other models are asked as the flags say. A prompt is worded and
tokenised as in training, by the tokenizer's chat template too.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from devft_jax.commands.flags import Section, flags_of
from devft_jax.commands.flags import parse as parse_words
from devft_jax.commands.jax_setup import require_devices
from devft_jax.config.execution import ExecutionOptions, resolve_compute, validate_execution
from devft_jax.config.run_config import RunConfig, stored_config, validate
from devft_jax.data import Record
from devft_jax.data.answer_ends import SPLIT_FILE, ends_of_adapter, ends_of_run, ends_of_template
from devft_jax.data.prompts import find_template, prompt_text, renderer, resolve_template
from devft_jax.data.sources import LAYOUTS
from devft_jax.data.tokens import prompt_tokens
from devft_jax.errors import InputError, RunError
from devft_jax.federated.algorithms import algorithm_of
from devft_jax.files import MOST_BYTES, checked_path, decoded, parse_json, printable, read_text
from devft_jax.models.adapter import Adapter
from devft_jax.models.generation.answers import Completion
from devft_jax.models.generation.generate import Listener, check_prompts, generate
from devft_jax.models.generation.options import GenerationOptions, validate_generation
from devft_jax.models.huggingface.end_tokens import end_token_ids
from devft_jax.models.huggingface.folder import model_folder
from devft_jax.models.huggingface.model import Model
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.settings import base_of_adapter
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.safetensors import one_line, read_json
from devft_jax.models.llama import Compute
from devft_jax.options import operand, path, verbatim
from devft_jax.runtime.screen import complain, show
from devft_jax.training.submodels import bundled_model

BEGINNING = b'{"instruction": '
"""Of every line that `to_row` makes."""

INTERACTIVE_LOOK = 4
"""Tokens decoded before an interactive answer shows more."""


ABOUT = "Answer prompts: one, those of a file or of standard input, or, at a terminal, one after the other."


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """The model that is asked."""

    source: str = operand(path=True)
    """A run's folder, a model's folder, a PEFT adapter's folder (with the base that it names), a Hugging Face name, or
    bundled for the small model of this package."""


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """What is asked, and of which model."""

    prompt: str | None = verbatim(None)
    """One prompt. With neither this nor `file`, lines of standard input are the prompts."""
    input: str = verbatim("")
    """What `prompt` refers to, such as a text to shorten; worded as a record's input is in training."""
    file: str | None = path(None)
    """Prompts from a file: a line each, or, in .jsonl and .json, records with instruction and input as training data has."""
    adapter: str | None = path(None)
    """Folder of a PEFT adapter; by default the run's own, none for other models."""
    compare: bool = False
    """Also show what the model says without the adapter."""
    template: str | None = None
    """Wording of the prompt: a template of `devft list`, or auto (chat where the tokenizer has a chat template, else
    alpaca); by default the run's, completion (the prompt as it is) for other models."""
    quantization: Literal["none", "int8", "int4", "nf4"] | None = None
    """Storage of the frozen projections; by default as in the run, none for other models."""
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """Precision of activations and frozen weights; by default as in the run, auto (float32 on CPU) for other models."""
    out: str | None = path(None)
    """File that gets a JSON object for every prompt besides; absent, empty, or earlier answers, which are replaced."""


@dataclass(frozen=True)
class Respondent:
    """A loaded model that answers records.

    Attributes:
      adapter: None for the bare base. template: how records are worded. fields: names of a record's fields by role.
      eos_ids: tokens that end its answers.
    """

    model: Model
    adapter: Adapter | None
    template: str
    fields: Mapping[str, str]
    eos_ids: tuple[int, ...]
    compute: Compute

    @property
    def bare(self) -> "Respondent":
        """The same without its adapter."""
        return dataclasses.replace(self, adapter=None)

    def prompt(self, record: Record) -> str:
        """What the model is given of a record."""
        return prompt_text(record, self.template, self.model.tokenizer)

    def tokens(self, record: Record) -> list[int]:
        """The prompt's token ids, as in training."""
        return prompt_tokens(record, self.model.tokenizer, self.template)

    def check(self, records: Sequence[Record], options: GenerationOptions) -> None:
        """Raise `InputError` unless every record can be answered."""
        check_prompts(self.model.config, [self.tokens(record) for record in records], range(len(records)), options)

    def answer(
        self,
        records: Sequence[Record],
        options: GenerationOptions,
        *,
        first: int = 0,
        listen: Listener | None = None,
    ) -> list[Completion]:
        """A completion for every record; `first` is the number of the first, which its random draws follow."""
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


def open_respondent(source: str, asked: PromptOptions) -> Respondent:
    """Load what `devft generate SOURCE` asks.

    Args:
      source: a run's folder, a model's folder, a PEFT adapter's, a Hugging Face name, or "bundled".
      asked: flags that win over what the run's folder says.

    Raises:
      InputError: `source` is neither, cannot be read, or does not fit the flags.
    """
    folder = checked_path(source, "source")
    fields = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    is_run = bool(fields) and "model_type" not in fields
    is_adapter = not fields and (folder / ADAPTER_CONFIG_FILE).is_file()
    named = base_of_adapter(folder, "ask the base and add --adapter") if is_adapter else source
    run = _run_config(folder, fields) if is_run else RunConfig(model=named, template="completion")
    adapter_folder = folder / "adapter" if is_run else folder if is_adapter else None
    if asked.adapter is not None:
        adapter_folder = checked_path(asked.adapter, "adapter")
    elif is_run and not algorithm_of(run).low_rank:
        raise InputError(
            f"the run in {folder} ({run.algorithm}) has no low-rank adapter, and answers are drawn with no other kind; name "
            "another run's, or a PEFT adapter with --adapter."
        )
    elif is_run and not algorithm_of(run).has_global_model:
        raise InputError(
            f"the run in {folder} ({run.algorithm}) has no global model, but one for each client; write a client's with "
            "`devft export --client NAME` and name its folder with adapter."
        )
    elif is_run and not (folder / "adapter").is_dir():
        raise InputError(
            f"the run in {folder} has no adapter yet; finish it with the command that started it, or name one with adapter."
        )
    if asked.compare and adapter_folder is None:
        raise InputError(
            f"compare needs an adapter and {source} is neither a run's folder nor an adapter's; name one, or add --adapter."
        )
    find_template(asked.template or run.template)
    execution = ExecutionOptions(dtype=asked.dtype or run.dtype)
    validate_execution(execution)
    compute = resolve_compute(execution)
    path = bundled_model() if run.model == "bundled" else model_folder(run.model)
    model = load_pretrained(path, quantization=asked.quantization or run.quantization, dtype=compute.dtype)
    template = asked.template or (_template_of_run(folder, run) if is_run else run.template)
    template = resolve_template(template, conversational=True, tokenizer=model.tokenizer)
    renderer(template, model.tokenizer)  # refuses a chat template that is not there, before anything is asked
    adapter = None if adapter_folder is None else import_peft(adapter_folder, model.config)
    ends = [*end_token_ids(path, model.tokenizer), *ends_of_template(template, model.tokenizer)]
    ends += ends_of_run(folder, lambda: model.tokenizer) if is_run else []
    ends += [] if adapter_folder is None else ends_of_adapter(adapter_folder)
    return Respondent(model, adapter, template, run.fields or {}, tuple(dict.fromkeys(ends)), compute)


def _run_config(folder: Path, fields: Mapping[str, Any]) -> RunConfig:
    """The configuration of the run that a folder holds."""
    if "model" not in fields:
        raise InputError(f"{folder / 'config.json'} describes neither a run nor a model; name another folder.")
    config, objects = stored_config(fields, folder)
    if "model" in objects:
        raise InputError(
            f"the run in {folder} was given its model as an object in Python; name the model's folder and add "
            f"--adapter {folder / 'adapter'}."
        )
    validate(config)
    if Path(config.model).is_absolute() and not Path(config.model).exists():
        raise InputError(
            f"the model {config.model} of the run in {folder} is not there any more; name where it is now instead of the "
            f"run, and add --adapter {folder / 'adapter'}."
        )
    return config


def _template_of_run(folder: Path, run: RunConfig) -> str:
    """The template that a run trained with; what `auto` stood for depended on its data, and is kept with the split."""
    if run.template != "auto":
        return run.template
    template = read_json(folder / SPLIT_FILE).get("template", "alpaca")
    if not isinstance(template, str):
        raise InputError(f"template in {folder / SPLIT_FILE} is no name; restore it, or name one with template.")
    find_template(template)
    return template


# ---- prompts ---------------------------------------------------------------------------------------------------------


def to_record(text: str, origin: str, input: str = "") -> Record:
    """A prompt as typed.

    Raises:
      InputError: it holds bytes that are no text.
    """
    try:
        (text + input).encode()
    except UnicodeEncodeError as error:
        # Python keeps a byte that is no UTF-8 as half of a character.
        wrong = printable(error.object[error.start])
        raise InputError(f"{origin} is not UTF-8 text ({wrong}); write it in UTF-8.") from error
    return Record(instruction=text, input=input, output="", category=None, origin=origin)


def read_prompts(path: str | Path, fields: Mapping[str, str]) -> list[Record]:
    """The prompts of a file.

    Args:
      path: `.jsonl` (an object a line) or `.json` (an array) of records that need no output; any other is text, a prompt a
        line. Empty lines are left out.
      fields: names of a record's fields by role, for records of another shape than training data usually has.

    Raises:
      InputError: the file cannot be read, holds no prompt, or a record without an instruction; names the line.
    """
    path = checked_path(path, "file")
    text = read_text(path, "the prompts")
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if path.suffix == ".json":
        rows = parse_json(text, str(path))
        if not isinstance(rows, list):
            raise InputError(f"{path} does not hold an array of records; write them in brackets, or a line each in .jsonl.")
        records = [_record(row, f"{path}:{number}", fields) for number, row in enumerate(rows, 1)]
    elif path.suffix == ".jsonl":
        records = [_record(parse_json(line, str(path), number), f"{path}:{number}", fields) for number, line in lines]
    else:
        records = [to_record(line.rstrip("\r"), f"{path}:{number}") for number, line in lines]
    if not records:
        raise InputError(f"{path} holds no prompt; write one a line.")
    return records


def _record(row: Any, origin: str, fields: Mapping[str, str]) -> Record:
    if not isinstance(row, Mapping):
        raise InputError(f"{origin} is a {type(row).__name__}, not an object with an instruction; correct it.")

    def text(role: str) -> str | None:
        names = [fields[role]] if role in fields else [layout[role] for layout in LAYOUTS if role in layout]
        return next((str(row[name]) for name in names if row.get(name) is not None), None)

    instruction = text("instruction")
    if instruction is None:
        named = fields.get("instruction", "instruction, prompt or question")
        raise InputError(f"{origin} has no field {named} (it has {', '.join(map(str, row)) or 'none'}); add it.")
    return to_record(instruction, origin, text("input") or "")


def read_standard_input(stream: TextIO) -> list[Record]:
    """The prompts of a stream, one a line; empty lines are left out.

    Raises:
      InputError: it is no UTF-8 text, endless, or holds no prompt.
    """
    # As bytes: what is no text is named by its line, whatever encoding the terminal has.
    raw = getattr(stream, "buffer", None)
    content = stream.read().encode("utf-8", "surrogateescape") if raw is None else raw.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"standard input holds more than {MOST_BYTES:,} bytes of prompts; give them in parts.")
    lines = enumerate(decoded(content, "standard input").split("\n"), 1)
    records = [to_record(line.rstrip("\r"), f"standard input:{number}") for number, line in lines if line.strip()]
    if not records:
        raise InputError("standard input holds no prompt; write one a line, or give --prompt or --file.")
    return records


# ---- the command -----------------------------------------------------------------------------------------------------


def command(arguments: Sequence[str]) -> int:
    """Run `devft generate` and return its exit code.

    Args:
      arguments: the words after `devft generate`.
    """
    source, asked, options = parse(arguments)
    validate_generation(options)
    if asked.prompt is not None and asked.file is not None:
        raise InputError("prompt and file exclude each other; give one of them.")
    if asked.input and asked.prompt is None:
        raise InputError("input belongs to a prompt; give prompt besides.")
    if asked.file is not None and not checked_path(asked.file, "file").exists():
        raise InputError(f"file {asked.file} does not exist; name a file of prompts.")
    if asked.out and asked.file and Path(asked.out).expanduser().resolve() == Path(asked.file).expanduser().resolve():
        raise InputError(f"out {asked.out} is the file of prompts and would replace it; name another.")
    if asked.out:
        _check_out(checked_path(asked.out, "out"))
    require_devices()
    respondent = open_respondent(source, asked)
    voices = {"base": respondent.bare, "adapter": respondent} if asked.compare else {"answer": respondent}
    if asked.prompt is not None:
        records = [to_record(asked.prompt, "prompt", asked.input)]
    elif asked.file is not None:
        records = read_prompts(asked.file, respondent.fields)
    elif sys.stdin.isatty():
        with _writing(asked.out) as written:
            converse(voices, options, written)
        return 0
    else:
        records = read_standard_input(sys.stdin)
    respondent.check(records, options)
    with _writing(asked.out) as written:
        answer_all(voices, records, options, written, kept=asked.out is not None)
    return 0


def parse(arguments: Sequence[str]) -> tuple[str, PromptOptions, GenerationOptions]:
    """The source and the options of a command line."""
    rooms = {"source": SourceOptions, "prompts": PromptOptions, "generation": GenerationOptions}
    sections = [Section(title, flags_of(room)) for title, room in rooms.items()]
    values = parse_words("devft generate", ABOUT, sections, arguments)
    source, asked, options = (
        {flag.name: values[flag.name] for flag in section.flags if flag.name in values} for section in sections
    )
    return source["source"], PromptOptions(**asked), GenerationOptions(**options)


Writer = Callable[[dict[str, Any]], None]


def _check_out(path: Path) -> None:
    """Raise `InputError` where the file of answers would take the place of something else, such as a run's own file."""
    if path.is_dir():
        raise InputError(f"out {printable(str(path))} is a folder; name a file in it.")
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            # An answer's line begins with its prompt, however long it is.
            begin = file.read(len(BEGINNING))
    except OSError as error:
        raise InputError(
            f"out {printable(str(path))} cannot be read ({one_line(error)}) to see what it holds; name another file."
        ) from error
    if begin not in (b"", BEGINNING):
        raise InputError(
            f"out {printable(str(path))} holds something else than answers of `devft generate`, which it would replace; "
            "name another file."
        )


@contextmanager
def _writing(path: str | None) -> Iterator[Writer]:
    """A function that adds a line to the file; one that does nothing where there is no file.

    An older file is replaced with the first line: what ends without an answer leaves it, and leaves no empty one behind.
    """
    if path is None:
        yield lambda row: None
        return
    place = checked_path(path, "out")
    made = not os.path.lexists(place)
    try:
        file: TextIO = place.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"out {path} cannot be written ({one_line(error)}); name a file in a folder you may write."
        ) from error
    written = 0

    def write(row: dict[str, Any]) -> None:
        nonlocal written
        try:
            if not written and file.seekable() and file.tell():
                file.truncate(0)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
        except OSError as error:
            raise RunError(
                f"out {path} cannot be written ({one_line(error)}); it holds {written} answers: make room there and ask the "
                "rest again."
            ) from error
        written += 1

    try:
        yield write
    finally:
        # What could not be written fails here once more.
        with suppress(OSError):
            file.close()
        if made and not written:
            place.unlink(missing_ok=True)


def answer_all(
    voices: Mapping[str, Respondent],
    records: Sequence[Record],
    options: GenerationOptions,
    write: Writer,
    *,
    kept: bool = False,
) -> None:
    """Answer records in their order, through `write` and on standard output.

    An answer is written before it is shown, batch by batch, so that what is stopped keeps those that it had.

    Args:
      voices: one respondent, or several to compare, by the heading under which each answers.
      kept: `write` keeps the answers: they are all drawn, even where nobody reads standard output any more.

    Raises:
      OSError: standard output could not be written; what is kept is whole.
    """
    unseen: OSError | None = None
    for start in range(0, len(records), options.generation_batch):
        some = records[start : start + options.generation_batch]
        answers = {name: voice.answer(some, options, first=start) for name, voice in voices.items()}
        said = [{name: completions[index] for name, completions in answers.items()} for index in range(len(some))]
        for record, one in zip(some, said, strict=True):
            write(to_row(voices, record, one))
        try:
            for number, (record, one) in enumerate(zip(some, said, strict=True), start + 1):
                if unseen is None:
                    _show(record, one, number, alone=len(records) == 1)
        except OSError as error:
            unseen = error
            if not kept:
                break
    if unseen is not None:
        raise unseen


def _show(record: Record, said: Mapping[str, Completion], number: int, *, alone: bool) -> None:
    """Prompt and answers for a reader; a single answer to a single prompt stands by itself, fit for a pipe."""
    if alone and len(said) == 1:
        show(*(completion.text or "" for completion in said.values()))
        return
    if not alone:
        show(f"--- prompt {number}")
        show("\n".join(part for part in (record.instruction, record.input) if part))
    for name, completion in said.items():
        show(f"--- {name}")
        show(completion.text or "")
    show()


def to_row(voices: Mapping[str, Respondent], record: Record, said: Mapping[str, Completion]) -> dict[str, Any]:
    """A prompt and its answers as the `--out` file has them; compared answers are objects of their own."""
    answers = {
        name: {"completion": answer.text, "finish_reason": answer.finish_reason, "tokens": list(answer.tokens)}
        for name, answer in said.items()
    }
    respondent = next(iter(voices.values()))
    asked = {"instruction": record.instruction, "input": record.input, "prompt": respondent.prompt(record)}
    return asked | (answers if len(answers) > 1 else next(iter(answers.values())))


def converse(voices: Mapping[str, Respondent], options: GenerationOptions, write: Writer) -> None:
    """Answer what is typed, line by line, text appearing as it is drawn; Ctrl-D ends."""
    options = dataclasses.replace(options, tokens_per_look=min(options.tokens_per_look, INTERACTIVE_LOOK))
    complain("A line is a prompt; Ctrl-D ends.")
    number = 0
    while True:
        try:
            line = input("> ")
        except EOFError:
            show()
            return
        if not line.strip():
            continue
        said = {}
        try:
            record = to_record(line, f"line {number + 1}")
            for name, voice in voices.items():
                if len(voices) > 1:
                    show(f"--- {name}")
                [said[name]] = voice.answer([record], options, first=number, listen=_say)
                show()
        except InputError as error:
            # A prompt that does not fit ends its answer, not the conversation.
            complain(f"devft: {error}")
            continue
        write(to_row(voices, record, said))
        number += 1


def _say(index: int, text: str) -> None:
    show(text, end="")

"""Parses the words of a command into the options of its dataclasses, and writes `--help` from their texts.

    --name value, --name=value           every option; `devft_jax.config.values` parses its value
    --data a b, --data a --data b        a list option takes all words up to the next flag, from every use
    --json, --json false                 a boolean is true if no value follows
    FOLDER, A B C                        a positional argument; a list takes all of them

Every parse error is one sentence.
"""

import dataclasses
import os
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devft_jax.config.values import FALSE, TRUE, choices_of, from_words, is_mapping, item_kind, kinds_of
from devft_jax.errors import InputError
from devft_jax.files import checked_path, printable
from devft_jax.options import closest, option_texts, own_fields
from devft_jax.runtime.screen import show

WIDEST, INDENT = 110, 28
"""Columns of a help text, and the columns before an option's text."""


ELSEWHERE = {
    **dict.fromkeys(("lr", "lr_max", "client_lr", "local_lr"), "learning_rate"),
    **dict.fromkeys(("lr_scheduler_type", "lr_scheduler", "scheduler"), "schedule"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "rate_warmup_rounds"),
    **dict.fromkeys(("r", "lora_r", "lora_rank", "peft_lora_r"), "rank"),
    **dict.fromkeys(("lora_alpha", "peft_lora_alpha"), "alpha"),
    **dict.fromkeys(("lora_dropout", "peft_lora_dropout"), "dropout"),
    **dict.fromkeys(("target_modules", "lora_target_modules"), "targets"),
    **dict.fromkeys(("model_name", "model_name_or_path", "model_path", "base_model", "global_model"), "model"),
    **dict.fromkeys(("dataset", "dataset_name", "dataset_path", "data_path", "train_file"), "data"),
    **dict.fromkeys(("test_file", "validation_file", "eval_data"), "test_data"),
    **dict.fromkeys(("max_samples", "dataset_sample", "num_samples"), "data_limit"),
    **dict.fromkeys(("output", "output_dir", "save_dir"), "out"),
    **dict.fromkeys(("num_rounds", "comm_rounds", "num_communication_rounds", "epochs"), "rounds"),
    **dict.fromkeys(("num_clients", "n_clients"), "clients"),
    **dict.fromkeys(("sample_clients", "client_selection_frac", "clients_sampled"), "clients_per_round"),
    **dict.fromkeys(("max_steps", "num_steps", "steps"), "local_steps"),
    **dict.fromkeys(("per_device_train_batch_size", "local_batch_size", "micro_batch_size"), "batch_size"),
    **dict.fromkeys(("seq_length", "max_seq_length", "max_seq_len", "cutoff_len"), "max_length"),
    **dict.fromkeys(("fed_alg", "strategy", "method"), "algorithm"),
    **dict.fromkeys(("split_strategy", "split"), "partition"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "bits"), "quantization"),
    **dict.fromkeys(("optim",), "optimizer"),
    **dict.fromkeys(("gpus", "num_devices"), "devices"),
}
"""Names of options in the field's other tools, with the name used here."""


@dataclass(frozen=True)
class Flag:
    """One option of a command line.

    Attributes:
      name: the name of the field.
      kind: its type annotation.
      text: its help text.
      default: the value if it is not given; `dataclasses.MISSING` if it must be given.
      operand: whether it is a positional argument.
      path: whether it is checked as a path.
      verbatim: whether its value is taken literally, one word per use.
    """

    name: str
    kind: Any
    text: str
    default: Any = dataclasses.MISSING
    operand: bool = False
    path: bool = False
    verbatim: bool = False

    @property
    def written(self) -> str:
        """How it is written in a command."""
        return self.name.upper() if self.operand else f"--{self.name.replace('_', '-')}"

    @property
    def many(self) -> bool:
        """Whether several values may be given."""
        return item_kind(self.kind) is not None or is_mapping(self.kind)

    def value(self, words: Sequence[str]) -> Any:
        """The option's value, parsed from its words; raises `InputError` if the type or the path is wrong."""
        broken = next((word for word in words if _is_broken(word)), None)
        if broken is not None:
            raise InputError(f"{self.name} '{printable(broken)}' is not UTF-8 text; correct it.")
        if self.verbatim:
            value: Any = tuple(words) if self.many else words[0]
        elif self.kind is bool and not words:
            value = True
        else:
            value = from_words(self.name, words, self.kind)
        if self.path and value is not None:
            for one in value if isinstance(value, tuple) else (value,):
                checked_path(one, self.name)
        return value


@dataclass(frozen=True)
class Section:
    """Options under one heading of the help text.

    Attributes:
      title: the heading.
      flags: the options.
    """

    title: str
    flags: Sequence[Flag]


def flags_of(group: type, start: Any = None, without: Sequence[str] = ()) -> list[Flag]:
    """The options that a dataclass declares, as flags.

    Args:
      group: the dataclass.
      start: an object whose values are the defaults; by default the declared defaults are used.
      without: names of options that get no flag.
    """
    texts, kinds = option_texts(group), typing.get_type_hints(group)
    found = []
    for field in own_fields(group):
        if field.name in without:
            continue
        marks = {name: field.metadata.get(name, False) for name in ("operand", "path", "verbatim")}
        default = field.default if start is None else getattr(start, field.name)
        found.append(Flag(field.name, kinds[field.name], texts.get(field.name, ""), default, **marks))
    return found


def parse(
    command: str, about: str, sections: Sequence[Section], words: Sequence[str], most_used: Sequence[str] = ()
) -> dict:
    """The values of the options that the words give, by name; prints the help and exits if the words ask for it.

    Args:
      command: the command, such as "devft run".
      about: what it does, for the help text.
      sections: the options.
      words: the words after the command.
      most_used: names of the options to list first in the help text.

    Raises:
      InputError: a word is not an option, an option lacks its value, or a required option is not given.
    """
    flags = {flag.name: flag for section in sections for flag in section.flags}
    if asks_help(words):
        show(help_text(command, about, sections, most_used))
        raise SystemExit(0)
    values = {name: flags[name].value(given) for name, given in _given(command, flags, words).items()}
    for flag in flags.values():
        if flag.default is dataclasses.MISSING and flag.name not in values:
            raise InputError(f"{command} needs {flag.written}, {_begun(flag.text)}; see `{command} --help`.")
    return values


def asks_help(words: Sequence[str]) -> bool:
    """Whether the words of a command ask for its help text.

    Args:
      words: the words after the command.
    """
    return any(word in ("-h", "--help") for word in words)


def _begun(text: str) -> str:
    """The first part of a help text, for use in a sentence."""
    first = text.split(";")[0].split(". ")[0].rstrip(".")
    return first[0].lower() + first[1:]


def _given(command: str, flags: Mapping[str, Flag], words: Sequence[str]) -> dict[str, list[str]]:
    """The words given for each option."""
    given: dict[str, list[str]] = {}
    operands = [flag for flag in flags.values() if flag.operand]
    last: Flag | None = None
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if not word.startswith("--") or word == "--":
            if not operands:
                raise _stray(command, word, last)
            last = flag = operands[0] if operands[0].many else operands.pop(0)
            given[flag.name] = [*given.get(flag.name, []), word]
            continue
        last = flag = _named(command, flags, word)
        _, equals, value = word.partition("=")
        found = [value] if equals else []
        while not equals and at < len(words) and _belongs(flag, found, words[at]):
            found.append(words[at])
            at += 1
        if not found and flag.kind is not bool:
            raise InputError(f"{flag.written} needs a value; write it after the flag.")
        if flag.name in given and not flag.many:
            raise InputError(f"{flag.written} is given twice and takes one value; give it once.")
        given[flag.name] = [*given.get(flag.name, []), *found]
    return given


def _named(command: str, flags: Mapping[str, Flag], word: str) -> Flag:
    """The flag that a word starts with."""
    name = word[2:].partition("=")[0].replace("-", "_")
    flag = flags.get(name)
    if flag is None or flag.operand:
        known = [each.written for each in flags.values() if not each.operand]
        meant = flags.get(ELSEWHERE.get(name.lower(), ""))
        hint = (
            f"here it is called {meant.written}."
            if meant is not None
            else closest(f"--{name.replace('_', '-')}", known, f"see `{command} --help`.")
        )
        raise InputError(f"{command} has no option {printable(word.partition('=')[0])}; {hint}")
    return flag


def _belongs(flag: Flag, found: Sequence[str], word: str) -> bool:
    """Whether a word belongs to the flag before it."""
    if word.startswith("--"):
        return False
    if flag.kind is bool:
        return not found and word.lower() in TRUE + FALSE
    return not found or (flag.many and not flag.verbatim and not (word.startswith("-") and not _is_number(word)))


def _is_broken(word: str) -> bool:
    """Whether a word holds bytes that are not valid text."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return True
    return False


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _stray(command: str, word: str, last: Flag | None) -> InputError:
    """The error for a word that belongs to no option."""
    shown = printable(word)
    if word.startswith("-") and not _is_number(word):
        return InputError(f"{command} has no option {shown}; see `{command} --help`.")
    if last is None:
        return InputError(f"'{shown}' belongs to no option; write a flag before the value, see `{command} --help`.")
    return InputError(f"'{shown}' follows {last.written}, which takes one value; quote a value that contains spaces.")


# ---- help ------------------------------------------------------------------------------------------------------------


def help_text(command: str, about: str, sections: Sequence[Section], most_used: Sequence[str] = ()) -> str:
    """The help text of a command: usage, description, the most used options, then the other options by section."""
    flags = [flag for section in sections for flag in section.flags]
    operands = [flag for flag in flags if flag.operand]
    words = {flag.written + " ..." * flag.many: flag.default is dataclasses.MISSING for flag in operands}
    usage = [word if needed else f"[{word}]" for word, needed in words.items()]
    lines = [" ".join(["usage:", command, *usage, "[options]"]), ""]
    lines += [line for part in about.split("\n") for line in _filled(part)]
    first = [flag for name in most_used for flag in flags if flag.name == name]
    groups = [Section("most used", first), *sections] if first else list(sections)
    for section in groups:
        shown = [flag for flag in section.flags if section.title == "most used" or flag not in first]
        if shown:
            lines += ["", f"{section.title}:"]
            lines += [line for flag in shown for line in entry(flag)]
    return "\n".join(lines)


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns) if os.isatty(1) else WIDEST


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, _width(), break_on_hyphens=False, break_long_words=False) or [""]


def entry(flag: Flag) -> list[str]:
    """An option's lines in the help text: its flag, its text and its default."""
    head = f"  {flag.written}" + ("" if flag.operand or flag.kind is bool else f" {metavar(flag.kind)}")
    default = flag.default
    shown = "" if default is None or default is dataclasses.MISSING or default == () else f" (default: {_shown(default)})"
    width = max(_width() - INDENT, 30)
    text = textwrap.wrap(flag.text + shown, width, break_on_hyphens=False, break_long_words=False) or [""]
    if len(head) < INDENT - 1:
        return [f"{head:<{INDENT}}{text[0]}", *(" " * INDENT + line for line in text[1:])]
    return [head, *(" " * INDENT + line for line in text)]


def metavar(kind: Any) -> str:
    """The placeholder for an option's value in the help text: INT, FLOAT, STR, `INT,...` for a list, or the choices."""
    names = {int: "INT", float: "FLOAT", str: "STR"}
    item = item_kind(kind)
    found = [names[each] for each in kinds_of(kind) if each in names]
    found += [f"{names[item]},..."] if item is not None else []
    found += choices_of(kind)
    return "NAME VALUE ..." if is_mapping(kind) else "|".join(found)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, Mapping):
        return " ".join(f"{name} {item}" for name, item in value.items())
    return str(value) or "empty"

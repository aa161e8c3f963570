"""Data options, and what is known of the data from them and from file names, before anything is read."""

from collections.abc import Mapping
from dataclasses import dataclass

from devft_jax.data.built_in import is_built_in
from devft_jax.data.choices import METHODS, NATURAL, OVERLONG
from devft_jax.data.folders import held_out_files
from devft_jax.data.prompts import TEMPLATES
from devft_jax.data.sources import check_found, source_names
from devft_jax.errors import InputError
from devft_jax.options import Need, check_options, execution, option, path

FIELDS_NAMED = Need(
    lambda config: (
        not all(is_built_in(spec) for spec in (config.data, config.test_data, config.probe_data) if spec is not None)
    ),
    "has no effect on built-in data, whose fields are known",
    "use other --data",
    part="data",
)
HELD_OUT = Need(
    lambda config: has_held_out(config),
    "has no effect without held-out data",
    "give --test-data or --test-fraction",
    part="data",
)
"""The condition of evaluation options: held-out data."""
DRAWN_SPLIT = Need(
    lambda config: resolved_partition(config) not in NATURAL,
    lambda config: f"has no effect with the partition {resolved_partition(config)}, which sets the number of clients itself",
    "use another --partition, such as iid",
    part="data",
)
NATURAL_SPLIT = Need(
    lambda config: resolved_partition(config) in (*NATURAL, None),
    lambda config: f"is read only by field and file splits and the partition is {resolved_partition(config)}",
    "use --partition field or file",
    part="data",
)
SKEWED = ("dirichlet", "topic", "length", "quantity")
"""Partitions whose skew depends on a concentration."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The training and test data, their wording, and how they are split over clients."""

    data: str | tuple[str, ...] = path("microtasks")
    """Training data: a file of JSON, JSONL, CSV, TSV (gzipped or not) or Parquet, a folder, a quoted
    glob, a Hugging Face name (owner/name[/configuration][:split]), or the built-in
    microtasks[:split[:count]]. Records are instructions or conversations (messages, conversations)."""
    test_data: str | None = path(None)
    """Held-out data, named like `data`; by default the files and subfolders of a data folder whose names
    contain test, eval, validation, valid, val, dev or held_out, which are never used for training."""
    test_fraction: float = option(0.0, within="[0, 1)", remedy="0.1 holds out a tenth")
    """Share of the training examples, 0 to 1, held out at random if `test_data` is not given."""
    fields: Mapping[str, str] | None = option(None, needs=[FIELDS_NAMED])
    """Field names by role (instruction, input, output, or messages), such as `--fields instruction Question
    output Answer`; by default detected from the data."""
    template: str = option("auto", choices=TEMPLATES)
    """Wording of the prompt: alpaca (Stanford's), openfedllm (its variant of alpaca), alpaca_short, completion
    for the instruction unchanged, chat for the tokenizer's own template, or auto (chat for conversations
    if the tokenizer has one, else alpaca)."""
    max_length: int = option(512, at_least=2, at_most=2**24, remedy="use 2 tokens or more")
    """Most tokens of an example, including those that begin and end it; longer examples are cut."""
    overlong: str = option("drop", choices=OVERLONG)
    """What to do with a prompt that leaves no space for a completion: drop (with a warning) or error."""
    partition: str = option("auto", choices=("auto", *METHODS))
    """Split over clients: iid; dirichlet, topic or length (skewed mixtures of categories, of topics found
    in the texts, or of lengths); quantity (skewed sizes); field or file (one client per value or per
    file); auto is file for several files, else iid."""
    clients: int = option(20, at_least=1, at_most=10**6, needs=[DRAWN_SPLIT])
    """Number of clients; field and file splits set it themselves."""
    dirichlet_alpha: float = option(0.5, above=0, remedy="0.5 is usual", when={"partition": SKEWED})
    """Concentration of a dirichlet, topic, length or quantity split; smaller is more skewed."""
    partition_groups: int = option(
        10, at_least=2, at_most=10**5, remedy="use 2 or more to skew between", when={"partition": ("topic", "length")}
    )
    """Number of topics of a topic split, or of bins of equally many examples of a length split."""
    min_examples: int = option(0, at_least=0, needs=[NATURAL_SPLIT])
    """Fewest training examples of a client in a field or file split; clients with fewer are left out.
    With 0 none is left out, and a client without examples is an error."""
    category_field: str | None = option(None, needs=[FIELDS_NAMED])
    """Field with a record's category, or with its user for a field split, as text or number; by default
    `category`, `template` or `task` if present."""
    data_limit: int | None = option(None, at_least=1)
    """Most training records used: a fixed random subset, in proportion to the files' sizes; by default all."""
    test_limit: int | None = option(None, at_least=1, needs=[HELD_OUT])
    """Most test records, selected the same way; by default all."""
    cache_dir: str | None = execution(None, path=True)
    """Folder of the token cache; by default $DEVFT_CACHE, else ~/.cache/devft_jax."""


def validate_data(options: DataOptions) -> None:
    """Raise `InputError` for an invalid option, before anything is read.

    Args:
      options: the options to check.
    """
    check_options(options)
    if options.test_data is not None and options.test_fraction:
        raise InputError(
            f"test_data {options.test_data!r} and test_fraction {options.test_fraction} exclude "
            "each other; give one of them."
        )
    if options.partition == "topic":
        from devft_jax.data.topics import require_scikit_learn

        require_scikit_learn()


def check_data_found(options: DataOptions) -> None:
    """Raise `InputError` for a local path that does not exist, before a model is fetched.

    Args:
      options: the run's data options.
    """
    for spec in (options.data, options.test_data):
        if spec is not None:
            check_found(spec)


def clients_by_file(options: DataOptions) -> list[str] | None:
    """The clients' names if each client is a file, found without reading the files; None for any other split.

    Clients that `min_examples` will leave out are included.

    Args:
      options: the run's data options.

    Raises:
      InputError: a local file does not exist.
    """
    if options.partition not in ("auto", "file"):
        return None
    names = source_names(options.data)
    return names if options.partition == "file" or len(names) > 1 else None


def resolved_partition(options: DataOptions) -> str | None:
    """The method of the split, with auto resolved from the names of files; None if a file does not exist.

    Args:
      options: the run's data options.
    """
    if options.partition != "auto":
        return options.partition
    try:
        return "iid" if clients_by_file(options) is None else "file"
    except InputError:
        return None


def has_held_out(options: DataOptions) -> bool:
    """Whether there is held-out data, according to the options and the names of files.

    Args:
      options: the run's data options.
    """
    return bool(options.test_data is not None or options.test_fraction or held_out_files(options.data))

"""`devft report`: reads a run's folder and writes one self-contained page.

Reading takes no lock and writes nothing but the page, so a run that is still running, or whose folder is read-only, can be
reported as well as a finished one.
"""

from pathlib import Path

from devft_jax.config.command_line import command_line, nearest_preset, start_of
from devft_jax.config.files import stored_config, to_plain
from devft_jax.config.run_config import OPTION_GROUPS, RunConfig
from devft_jax.errors import InputError
from devft_jax.files import checked_path, existing_folder, write_atomically
from devft_jax.options import identity_fields, option_texts
from devft_jax.reporting.judged import judged_answers
from devft_jax.reporting.report import report_html
from devft_jax.reporting.settings import Option, Settings
from devft_jax.reporting.story import Story, check
from devft_jax.storage.ownership import claim_file
from devft_jax.storage.run_folder import RunFolder


def write_report(path: str | Path, out: str | Path | None = None) -> Path:
    """Write the report of a run.

    Args:
      path: the run's folder.
      out: the file to write; by default `report.html` in the folder.

    Returns:
      The file that was written.

    Raises:
      InputError: the folder holds no run with a finished round, its records are damaged or of another version, or the file
        cannot be written.
    """
    story = read_story(path)
    target = Path(path) / "report.html"
    if out is not None:
        target = checked_path(out, "out")
        claim_file(target)
    try:
        text = report_html(story, read_settings(story.config), judged_answers(Path(path)))
    except InputError:
        raise
    except Exception as error:  # damaged values may raise anything
        raise InputError(
            f"the records in {path} cannot be shown ({type(error).__name__}: {error}); they are damaged or of another "
            "version: run it again in another folder."
        ) from error
    try:
        write_atomically(target, text)
    except OSError as error:
        raise InputError(f"the report {target} cannot be written ({error.strerror}); give another file by --out.") from error
    return target


def read_story(path: str | Path) -> Story:
    """Read a run's folder.

    Args:
      path: the run's folder.

    Returns:
      The run as recorded there.

    Raises:
      InputError: the folder holds no run with a finished round, or its records are damaged or of another version.
    """
    folder = RunFolder(existing_folder(path, "name one that `devft run` wrote"))
    stored, split = folder.read_json("config.json"), folder.read_split()
    if stored is None or split is None:
        raise InputError(f"{folder.path} holds no run; name a folder that `devft run` wrote.")
    config, objects = stored_config(stored, folder.path)
    # A running run may continue between these two reads: its record is read last, and has all stages of the rounds read.
    rows, cut_off = folder.metrics.read_so_far()
    unfinished = folder.read_unfinished()
    record = folder.read_summary() if unfinished is None else unfinished
    if record is None or not rows:
        raise InputError(f"the run in {folder.path} has not finished a round yet; try again later.")
    story = Story(folder.path.name, config, objects, record, rows, split, finished=unfinished is None, cut_off=cut_off)
    check(story, str(folder.path))
    return story


def read_settings(config: RunConfig) -> Settings:
    """The configuration, compared with the defaults or with the nearest preset.

    Args:
      config: configuration of the run.
    """
    start = nearest_preset(config)
    values, starts, identity = to_plain(config), to_plain(start_of(start)), identity_fields(config)
    texts = {name: text for group in OPTION_GROUPS for name, text in option_texts(group).items()}
    options = [Option(name, values[name], starts[name], text, name not in identity) for name, text in texts.items()]
    return Settings(options, start, command_line(config))

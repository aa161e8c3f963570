"""What reaches the terminal, and what the exit code says where nothing does."""

import os
import subprocess
import sys

import pytest

from devft_jax.commands import cli
from devft_jax.commands.jax_setup import programs_folder
from devft_jax.errors import InputError, RunError
from devft_jax.reporting import Progress
from devft_jax.runtime import screen


def devft(*words, code="", **streams):
    """A command in a process of its own; `code` runs before it."""
    program = f"import sys\nfrom devft_jax.commands import cli\n{code}\ncli.configure_jax = lambda: None\ncli.main()"
    return subprocess.run([sys.executable, "-c", program, *words], check=False, text=True, **streams)


SHOWING = """
from devft_jax.runtime import screen
cli.command_of = lambda name: lambda words: [screen.show('a line ' * 20) for _ in range(2000)] and 0
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_said():
    with open("/dev/full", "w") as full:
        done = devft("list", code=SHOWING, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 1
        said = "devft: standard output cannot be written (No space left on device); its output is incomplete.\n"
        assert done.stderr == said
        # Where nothing can be said the exit code says it.
        assert devft("rnu", stdout=subprocess.PIPE, stderr=full).returncode == 2
        assert devft("--version", stdout=subprocess.PIPE, stderr=full).returncode == 0


def test_a_reader_that_has_gone_ends_quietly_and_not_with_success():
    program = f"import sys\nfrom devft_jax.commands import cli\n{SHOWING}\ncli.configure_jax = lambda: None\ncli.main()"
    with subprocess.Popen(
        [sys.executable, "-c", program, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("a line")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == cli.CLOSED_PIPE == 141


def test_streams_that_are_closed_give_their_numbers_to_no_file():
    code = "import os\ncli.command_of = lambda name: lambda words: os.open('/', os.O_RDONLY) - 3"
    shell = ["sh", "-c", 'exec "$0" "$@" 1>&- 2>&-', sys.executable, "-c"]
    program = f"import sys\nfrom devft_jax.commands import cli\n{code}\ncli.configure_jax = lambda: None\ncli.main()"
    assert subprocess.run([*shell, program, "list"], check=False).returncode == 0


def test_any_text_is_shown_in_any_encoding():
    showing = "lambda words: screen.show('\\u00fc\\x1b[31m\\udcff\\tb') or 0"
    code = f"from devft_jax.runtime import screen\ncli.command_of = lambda name: {showing}"
    done = devft("list", code=code, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\xfc\\x1b[31m\\udcff\tb\n", "")


def test_names_reach_the_terminal_without_their_escapes(capsys):
    Progress().say("client \x1b[2J\u202e\nsecond")
    Progress().warn("file \x1b]0;x\x07")
    screen.show("\x9b31m")
    screen.complain("a\nb\r")
    captured = capsys.readouterr()
    assert captured.out == "\\x9b31m\n"
    assert captured.err == "client \\x1b[2J\\u202e\nsecond\nwarning: file \\x1b]0;x\\x07\na\\x0ab\\x0d\n"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (
            ZeroDivisionError("by\nzero"),
            1,
            "`devft list` failed with an unexpected ZeroDivisionError (by zero);",
        ),
        (RuntimeError("x" * 2000), 1, "xxx...);"),
        (MemoryError(), 1, "`devft list` ran out of memory; lower batch_size"),
        (RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."), 1, "`devft list` ran out of memory"),
        (InputError("rank 0 is wrong."), 2, "devft: rank 0 is wrong."),
        (RunError("NaN."), 1, "devft: NaN."),
        (KeyboardInterrupt(), 130, "devft: interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_is_one_sentence(monkeypatch, capsys, error, code, sentence):
    def fail(words):
        raise error

    monkeypatch.setattr(cli, "command_of", lambda name: fail)
    assert cli.run_command(["list"]) == code
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert len(said) < 500
    assert cli.run_command(["list", "--traceback"]) == code
    shown = "Traceback (most recent call last)" in capsys.readouterr().err
    assert shown == (not isinstance(error, InputError | RunError | KeyboardInterrupt))


def test_a_run_keeps_where_its_error_came_from_in_its_folder(tmp_path, monkeypatch, capsys):
    def fail(config):
        (tmp_path / "run").mkdir()
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("devft_jax.training.run.train", fail)
    assert cli.run_command(["run", "--out", str(tmp_path / "run")]) == 1
    kept = tmp_path / "run" / "traceback.txt"
    assert f"{kept} holds where; --traceback shows where." in capsys.readouterr().err
    assert "ZeroDivisionError: by zero" in kept.read_text()


def test_a_platform_that_is_not_there_is_one_sentence(monkeypatch, capsys):
    import jax

    def no_devices():
        raise RuntimeError("Unable to initialize backend 'cuda': no\nsuch device")

    monkeypatch.setattr(jax, "devices", no_devices)
    for named, sentence in (
        ("cuda", "JAX_PLATFORMS 'cuda' names a platform that this machine does not have"),
        ("", "finds no"),
    ):
        monkeypatch.setenv("JAX_PLATFORMS", named)
        assert cli.run_command(["run", "--preset", "demo"]) == 2
        said = capsys.readouterr().err
        assert sentence in said
        assert said.count("\n") == 1


def test_the_version_and_what_the_package_offers(capsys):
    import devft_jax

    assert cli.run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"devft {devft_jax.__version__}\n"
    assert {"Run", "RunConfig", "preset", "train", "__version__"} <= set(dir(devft_jax))


@pytest.mark.parametrize("kind", ["file", "closed"])
def test_a_cache_that_cannot_be_is_left_out_with_a_warning(tmp_path, monkeypatch, capsys, kind):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DEVFT_CACHE", str(tmp_path / "file" if kind == "file" else "/proc/none"))
    assert programs_folder() is None
    assert "cannot be written" in capsys.readouterr().err
    monkeypatch.setenv("DEVFT_CACHE", "~/x")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert programs_folder() == str(tmp_path / "x" / "programs")

"""The documentation runs: its Python blocks are executed, its commands parsed, its links followed."""

import inspect
import json
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from devft_jax.commands import cli
from devft_jax.commands.compare import parse_compare
from devft_jax.commands.evaluate import parse_evaluate
from devft_jax.commands.generate import parse_generate
from devft_jax.commands.judge import parse_judge
from devft_jax.commands.list import ListOptions
from devft_jax.commands.parsing import parse_options
from devft_jax.commands.plan import parse_plan
from devft_jax.commands.probe import parse_probe
from devft_jax.commands.report import ReportOptions
from devft_jax.commands.run import parse_run
from devft_jax.comparing.arms import check_arms, parse_arm, read_arms
from devft_jax.config.validation import validate
from devft_jax.developmental import next_stage
from devft_jax.training import submodels as base_model
from tests.conftest import REPOSITORY
from tests.tiny_run import write_run_inputs

GUIDES = [str(path.relative_to(REPOSITORY)) for path in sorted((REPOSITORY / "docs").glob("**/*.md"))]
PAGES = ["README.md", "CONTRIBUTING.md", "SECURITY.md", *GUIDES]

# Commands that take the folder of a run and options of their own.
OF_A_FOLDER = {"export": "devft_jax.exporting.export.export", "replay": "devft_jax.training.replay.replay"}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([^)#\s]+)\)|^\[(\w+)\]: (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Fenced:
    """A fenced block: its language, its text and the line of the page on which the text begins."""

    language: str
    text: str
    line: int


def page_text(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def fenced(page: str) -> list[Fenced]:
    text = page_text(page)
    return [Fenced(found[1], found[2], text[: found.start(2)].count("\n") + 1) for found in FENCE.finditer(text)]


def python_of(page: str) -> list[Fenced]:
    return [block for block in fenced(page) if block.language == "python"]


def commands_of(page: str) -> list[str]:
    lines = [line for block in fenced(page) if block.language != "python" for line in block.text.splitlines()]
    return [line.split(" #")[0] for line in lines if line.startswith("devft ")]


def run_blocks(page: str, **given: object) -> types.ModuleType:
    """The page's Python as one module, its test functions called; an error shows the page and its line."""
    module = types.ModuleType(Path(page).stem)
    vars(module).update(given)
    # Dataclasses look their module up.
    sys.modules[module.__name__] = module
    try:
        for block in python_of(page):
            source = "\n" * (block.line - 1) + block.text
            exec(compile(source, str(REPOSITORY / page), "exec"), vars(module))
        for name, test in list(vars(module).items()):
            if name.startswith("test_") and inspect.isfunction(test):
                test()
    finally:
        del sys.modules[module.__name__]
    return module


@pytest.fixture
def room(tmp_path, word_tokenizer, monkeypatch) -> Path:
    """A folder to work in, with data as the README names it; `bundled` is a tiny model there."""
    write_run_inputs(tmp_path, word_tokenizer)
    (tmp_path / "clients").mkdir()
    for path in tmp_path.glob("client_*.json"):
        records = json.loads(path.read_text())
        (tmp_path / "clients" / f"{path.stem}.jsonl").write_text("\n".join(map(json.dumps, records)))
    [options] = [block.text for block in fenced("docs/guides/your_model_and_data.md") if block.language == "yaml"]
    (tmp_path / "my_run.yaml").write_text(options)
    [arms] = [block.text for block in fenced("docs/guides/comparing.md") if block.language == "yaml"]
    (tmp_path / "arms.yaml").write_text(arms)
    monkeypatch.setattr(base_model, "bundled_model", lambda: tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_blocks_of_the_algorithms_page_run(room, capsys):
    run_blocks("docs/algorithm.md")
    assert capsys.readouterr().out


@pytest.mark.slow
def test_the_blocks_on_a_growth_run_and_what_they_say_holds(room, capsys):
    run_blocks("docs/guides/your_growth.md")
    grown, adaptive = capsys.readouterr().out.splitlines()
    assert grown.startswith("[2, 4] ")
    assert adaptive == "[2, 2, 4]"


@pytest.mark.slow
def test_the_blocks_on_an_algorithm_run_and_what_they_say_holds(room, capsys):
    run_blocks("docs/guides/your_algorithm.md")
    sent, _, of_ranks = capsys.readouterr().out.splitlines()
    up, down = map(int, sent.split())
    assert 0 < up < down
    ranked_up, ranked_down = map(int, of_ranks.split())
    # Both ways the clients' own ranks: less than both factors of rank 4.
    assert 0 < ranked_up == ranked_down < down


def test_the_blocks_on_a_model_and_data_run(room, capsys):
    run_blocks("docs/guides/your_model_and_data.md")
    assert capsys.readouterr().out


def test_the_blocks_on_reading_a_report_run_and_a_callback_sees_every_round(room, capsys):
    run_blocks("docs/guides/reading_a_report.md")
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["round 1", "round 2"]


def test_the_blocks_on_a_callback_run_and_what_they_say_holds(room, capsys):
    page = run_blocks("docs/guides/your_callback.md")
    assert capsys.readouterr().out.split()[1] in ("2", "4")
    assert page.best.loss == min(stage.loss_full_after_transfer for stage in page.run.summary.stages)


def test_the_block_on_probing_runs(room, capsys):
    run_blocks("docs/guides/probing.md")
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["skip-grow", "2"], ["top-grow", "2"]]


def test_the_block_on_a_judge_runs_and_what_it_says_holds(capsys):
    run_blocks("docs/guides/judging.md")
    assert capsys.readouterr().out.splitlines() == ["4", "[[B]]"]


def test_every_page_with_python_is_run_by_a_test_here():
    tests = inspect.getsource(sys.modules[__name__])
    for page in PAGES:
        assert not python_of(page) or f'run_blocks("{page}"' in tests, page


def test_the_blocks_of_the_readme_run_up_to_their_training(monkeypatch):
    blocks = {"weight": jnp.ones((16, 3))}

    def train(config, growth=None):
        validate(config)
        if growth is not None:
            assert next_stage(growth, 0, blocks, (), jax.random.key(0)) is not None
        return types.SimpleNamespace(summary=types.SimpleNamespace(final_loss=0.0), folder="")

    monkeypatch.setattr("devft_jax.training.run.train", train)
    run_blocks("README.md", blocks=blocks, trained={"weight": jnp.zeros((8, 3))})


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/algorithm.md", "docs/guides/your_growth.md", "docs/guides/your_algorithm.md"])
def test_the_blocks_run_on_the_bundled_model_as_they_stand(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


def test_a_block_that_fails_names_the_page_and_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "page.md").write_text("One\n\n```python\nfine = 1\n1 / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks("page.md")
    last = caught.traceback[-1]
    assert (last.path, last.lineno + 1) == (tmp_path / "page.md", 5)


def check_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parses a command as the command line does, without starting it."""
    program, command, *rest = shlex.split(line)
    assert program == "devft"
    if command == "run":
        validate(parse_run(rest))
    elif command == "compare":
        common, options, _ = parse_compare(rest)
        validate(common)
        arms = read_arms(options.arms_file) if options.arms is None else list(map(parse_arm, options.arms))
        check_arms(arms)
        assert {options.reference, options.budget_of} <= {None, *(arm.name for arm in arms)}
    elif command == "plan":
        validate(parse_plan(rest)[0])
    elif command == "probe":
        validate(parse_probe(rest)[0])
    elif command in OF_A_FOLDER:
        asked: list[object] = []

        def note(*arguments: object, **options: object) -> None:
            asked.extend(arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(OF_A_FOLDER[command], note)
        assert cli.run_command([command, *rest]) == 130
        assert asked
    elif command == "generate":
        parse_generate(rest)
    elif command == "judge":
        parse_judge(rest)
    elif command == "evaluate":
        parse_evaluate(rest)
    else:
        parse_options(f"devft {command}", {"report": ReportOptions, "list": ListOptions}[command], rest)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_parses(page, room, monkeypatch):
    for line in commands_of(page):
        with monkeypatch.context() as patch:
            try:
                check_command(line, patch)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{page}: {line}: {error}")


@pytest.mark.parametrize(
    "line",
    [
        "devft run --grouth devft",
        "devft run --preset paper-llama2-70b",
        "devft run --capacities 4,2",
        "devft plan --preset paper-llama2-7b --rank 0",
        "devft compare --preset demo --arms fedit,fedit@bytes=devft",
        "devft compare --preset demo --arms fedit --reference devft",
        "devft compare --preset demo --arms fedit --seed 3",
        "devft plan --preset paper-llama2-7b --memoria 24GB",
        "devft export runs/x --form zip --out x",
        "devft report runs/first runs/second",
        "devft judge runs/x --questions question.jsonl",
        "devft walk",
    ],
)
def test_a_command_that_does_not_parse_is_found(line, room, monkeypatch, capsys):
    with pytest.raises((Exception, SystemExit, AssertionError)):
        check_command(line, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_names_to_what_they_name(page):
    for text, target, label, reference in LINK.findall(page_text(page)):
        target = target or reference
        if target.startswith("http"):
            continue
        path = (REPOSITORY / page).parent / target
        assert path.exists(), f"{page}: [{text or label}]({target})"
        name = re.fullmatch(r"`(\w+)`", text)
        if name and path.suffix == ".py":
            defined = re.compile(rf"^(def |class |){name[1]}\b", re.MULTILINE)
            assert defined.search(path.read_text()), f"{page}: {name[1]} is not defined in {target}"

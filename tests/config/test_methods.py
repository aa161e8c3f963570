"""Names that import: an algorithm and a growth of one's own, wherever a name is taken, and one sentence for each mistake."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys

import pytest

from devft_jax.commands.cli import run_command
from devft_jax.commands.list import method_text
from devft_jax.commands.run import parse_run
from devft_jax.comparing.arms import parse_arm
from devft_jax.config.command_line import command_line
from devft_jax.config.effects import check_effects, unread
from devft_jax.config.files import config_from_mapping, to_plain
from devft_jax.config.identity import identity
from devft_jax.config.methods import algorithm_of, growth_of, imports, known_method, record_of
from devft_jax.config.run_config import RunConfig
from devft_jax.config.validation import validate
from devft_jax.developmental import EndToEnd
from devft_jax.errors import InputError
from tests.conftest import REPOSITORY
from tests.tiny_run import write_run_inputs

MODULE = '''
"""Methods of one's own: what a client sends is halved."""

import dataclasses

from devft_jax.developmental import EndToEnd, Growth, LayerMap, NamedGrowth, TopGrow
from devft_jax.federated.algorithms import MethodConfig
from devft_jax.federated.algorithms.fedit import fedit
from devft_jax.options import option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    share: float = option(0.5, within="(0, 1]", remedy="0.5 is usual")
    """Part of what a client sends that counts."""
    kept_layers: tuple[int, ...] = (0, 1)


def damped(config: MethodConfig, options: Options):
    """x <- x + share d."""
    return dataclasses.replace(fedit(config), name=f"damped by {options.share} but {options.kept_layers}")


@dataclasses.dataclass
class Loose:
    share: float = 0.5


def loose(config: MethodConfig, options: Loose):
    return fedit(config)


@dataclasses.dataclass(frozen=True)
class Needed:
    share: float


def needed(config: MethodConfig, options: Needed):
    return fedit(config)


def halved(config):
    """x <- x + d / 2."""
    plain = fedit(config)
    return dataclasses.replace(plain, name="halved", reference="ours", reads=("client_ranks", "prox_mu"))


def plain(config):
    return dataclasses.replace(fedit(config), name="plain")


ready = plain(MethodConfig(rank=4, alpha=8.0))
whole = EndToEnd()


def top(options, num_layers):
    """The upper half, then all."""
    return TopGrow((num_layers // 2, num_layers))


named = NamedGrowth(
    reference="the upper half (ours)", message="its adapter", state="none", make=top, reads=("stages",),
    ignores=("stage_end",), because="never ends early",
)


class Mine(Growth):
    def next(self, stage, tree, history, key):
        return None


def fails(config):
    raise RuntimeError("not today")


def particular_ranks(config):
    """Has no default for the option that it reads."""
    if config.client_ranks is None:
        raise ValueError("give --client-ranks")
    return dataclasses.replace(fedit(config), name="ranks", reads=("client_ranks",))


def leaves(config):
    raise SystemExit(3)


def particular(config):
    raise ValueError("rank must be 7: give --rank 7")


def nothing(config):
    return None


def no_growth(options, num_layers):
    return 3


number = 3
'''


DAMPED = "outside.methods:damped"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a package of methods, which leaves nothing behind in this process."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "__init__.py").write_text("")
    (tmp_path / "outside" / "methods.py").write_text(MODULE)
    (tmp_path / "outside" / "broken.py").write_text("x = 1\ny = x / 0\n")
    (tmp_path / "outside" / "needy.py").write_text("import a_module_that_nobody_has\n")
    (tmp_path / "outside" / "mistyped.py").write_text("x = (1\n")
    (tmp_path / "outside" / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]


def test_an_algorithm_is_a_function_or_a_record(folder):
    config = RunConfig(algorithm="outside.methods:halved", rank=4)
    made = algorithm_of(config)
    assert (made.name, algorithm_of(dataclasses.replace(config, seed=4))) == ("halved", made)
    assert algorithm_of(RunConfig(algorithm="outside.methods:ready")).name == "plain"


def test_an_algorithm_declares_options_of_its_own(folder):
    assert algorithm_of(RunConfig(algorithm=DAMPED)).name == "damped by 0.5 but (0, 1)"
    words = ["--algorithm", DAMPED, "--algorithm-options", '["share=0.3", "kept-layers=2,3"]']
    config = parse_run(words)
    validate(config)
    check_effects(config)
    assert algorithm_of(config).name == "damped by 0.3 but (2, 3)"
    assert identity(config)["algorithm_options"] == ["share=0.3", "kept-layers=2,3"]
    assert config_from_mapping(to_plain(config), exact=True) == dataclasses.replace(config, alpha=64.0)
    assert parse_run(shlex.split(command_line(config))[2:]) == config
    arm = parse_arm(f"{DAMPED}+devft:algorithm_options=share=0.3/kept_layers=2:rank=4")
    assert arm.overrides == {"algorithm_options": ("share=0.3", "kept_layers=2"), "rank": 4}
    text = method_text(DAMPED)
    assert text.startswith(f"algorithm {DAMPED}\n")
    assert "share FLOAT" in text
    assert "Part of what a client sends that counts. Allowed: in (0, 1]." in text
    assert "kept-layers INT,..." in text


@pytest.mark.parametrize(
    ("algorithm", "options", "sentence"),
    [
        ("damped", "shore=0.3", "algorithm_options: 'outside.methods:damped' has no option 'shore'; did you mean 'share'?"),
        ("damped", "share", "algorithm_options 'share' has no value; write name=value."),
        ("damped", "share=2", "share 2.0 is outside (0, 1]; 0.5 is usual."),
        ("damped", "share=much", "share 'much' is not a number such as 0.1 or 1e-4; correct it."),
        ("damped", "share=1,share=1", "algorithm_options names share twice; name it once."),
        ("halved", "share=1", "algorithm 'outside.methods:halved' declares no options; leave algorithm_options out."),
        ("ready", "share=1", "algorithm 'outside.methods:ready' takes no options; leave algorithm_options out."),
        (
            "loose",
            "share=1",
            "algorithm 'outside.methods:loose': Loose is not frozen; declare it by @dataclass(frozen=True).",
        ),
        ("needed", "share=1", "algorithm 'outside.methods:needed': its option share has no default; declare one."),
    ],
)
def test_options_of_ones_own_that_cannot_be_used(folder, capsys, algorithm, options, sentence):
    words = ["--algorithm", f"outside.methods:{algorithm}", "--algorithm-options", options, "--data", "absent.json"]
    for command in ("run", "plan"):
        assert run_command([command, *words]) == 2
        assert capsys.readouterr().err == f"devft: {sentence}\n"


def test_an_algorithm_of_the_package_takes_no_options_by_name(folder):
    with pytest.raises(
        InputError, match=r"algorithm_options share=1 is read by user-defined algorithms only and the algorithm is fedit"
    ):
        check_effects(RunConfig(algorithm_options=("share=1",)))


def test_a_growth_is_an_object_a_function_or_a_record(folder):
    assert growth_of(RunConfig(growth="outside.methods:whole"), 4) == EndToEnd()
    for name in ("top", "named"):
        assert growth_of(RunConfig(growth=f"outside.methods:{name}"), 4).capacities == (2, 4)


def test_the_name_is_taken_wherever_one_is_and_is_the_identity(folder):
    flags = ["--algorithm", "outside.methods:halved", "--growth", "outside.methods:top"]
    config = parse_run(flags)
    validate(config)
    (folder / "run.yaml").write_text("algorithm: outside.methods:halved\ngrowth: outside.methods:top\n")
    assert parse_run(["--config", "run.yaml"]) == config
    assert config_from_mapping(to_plain(config), exact=True) == dataclasses.replace(config, alpha=64.0)
    assert identity(config)["algorithm"] == "outside.methods:halved"


@pytest.mark.parametrize(
    ("text", "algorithm", "growth", "overrides"),
    [
        ("outside.methods:plain", "outside.methods:plain", "end-to-end", {}),
        ("outside.methods:plain:rank=4", "outside.methods:plain", "end-to-end", {"rank": 4}),
        ("outside.methods:plain+devft:beta=0.2", "outside.methods:plain", "devft", {"beta": 0.2}),
        ("fedit+outside.methods:top:rank=2", "fedit", "outside.methods:top", {"rank": 2}),
        ("outside.methods:plain+outside.methods:top@bytes=x", "outside.methods:plain", "outside.methods:top", {}),
    ],
)
def test_arms_name_them_too(folder, text, algorithm, growth, overrides):
    arm = parse_arm(text)
    assert (arm.algorithm, arm.growth, dict(arm.overrides)) == (algorithm, growth, overrides)


@pytest.mark.parametrize("text", ["fedit:beta", "fedit+devft:beta", "outside.methods:plain:beta", "fedit:a+b"])
def test_an_option_without_a_value_is_no_name_that_imports(folder, text):
    with pytest.raises(InputError, match="write it as option=value"):
        parse_arm(text)


ALGORITHMS = [
    ("outside.missing:x", "names the module outside.missing, which is neither installed nor in"),
    ("nowhere.at.all:x", "names the module nowhere, which is neither installed nor in"),
    ("outside.methods:halfed", r"names halfed, which \S+methods.py does not define; did you mean 'halved'\?"),
    ("outside.methods:halved.x", "names x, which"),
    ("outside.methods:number", "is an int; name an Algorithm, or a function of a MethodConfig that returns one"),
    ("outside.methods:whole", "is an EndToEnd; name an Algorithm"),
    (
        "outside.methods:top",
        r"takes \(options, num_layers\); let it take \(config\), or give it as --growth\.",
    ),
    ("outside.methods:nothing", "returns None; let it return an Algorithm"),
    ("outside.methods:fails", r"making it raised RuntimeError \(not today\) at \S+methods.py:\d+; correct the module"),
    ("outside.methods:leaves", r"making it raised SystemExit \(3\) at \S+methods.py:\d+; correct the module"),
    ("outside.methods:particular", "rank must be 7: give --rank 7"),
    ("outside.broken:x", r"importing outside.broken raised ZeroDivisionError \(division by zero\) at \S+broken.py:2"),
    (
        "outside.needy:x",
        r"importing outside.needy raised ModuleNotFoundError \(No module named.* at \S+needy.py:1",
    ),
    ("outside.mistyped:x", r"importing outside.mistyped raised SyntaxError \(.*\) at \S+mistyped.py:1"),
    ("outside.leaving:x", r"importing outside.leaving raised SystemExit \(3\)"),
    ("outside.methods:", "is not an importable name; write package.module:name"),
    (":x", "is not an importable name"),
    ("a b:x\x1b[2J", r"'a b:x\\x1b\[2J' is not an importable name"),
]
GROWTHS = [
    ("outside.methods:number", "is an int; name a Growth, a NamedGrowth, or a function"),
    ("outside.methods:halved", r"takes \(config\); let it take \(options, num_layers\), or give it as --algorithm\."),
    ("outside.methods:Mine", "is a class; name an instance of it"),
    ("outside.methods:tops", r"names tops, which \S+ does not define; did you mean 'top'\?"),
]


@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [*(("algorithm", *case) for case in ALGORITHMS), *(("growth", *case) for case in GROWTHS)],
)
def test_a_mistake_is_one_sentence_with_the_name_before_anything_is_read(folder, capsys, kind, name, sentence):
    for command in ("run", "plan"):
        assert run_command([command, f"--{kind}", name, "--data", "absent.json"]) == 2
        said = capsys.readouterr().err
        assert re.match(rf"devft: {kind} '.*'(:| is| names| returns| takes) ", said)
        assert re.search(sentence, said)
        assert said.count("\n") == 1


def test_a_mistake_in_an_arm_names_the_arm(folder):
    for text in ("outside.missing:x", "fedit+outside.missing:x", "fedit+outside.methods:Mine", "x:"):
        with pytest.raises(InputError, match=f"^the arm '{re.escape(text)}' cannot be run: (algorithm|growth) '"):
            parse_arm(text)


def test_an_unknown_name_says_how_methods_of_ones_own_are_named():
    for ask in (lambda: known_method("algorithm", "outside.methods.halved"), lambda: method_text("outside.methods.halved")):
        with pytest.raises(InputError, match=r"choose from fedit, .*, or name one of your own as package\.module:name\.$"):
            ask()


def test_a_function_that_gives_no_growth_is_named(folder):
    with pytest.raises(InputError, match=r"^growth 'outside.methods:no_growth' returns an int; let it return a Growth\.$"):
        growth_of(RunConfig(growth="outside.methods:no_growth"), 4)


def test_what_it_reads_its_record_says(folder):
    own = RunConfig(algorithm="outside.methods:halved", client_ranks=(4, 2), prox_mu=0.5)
    check_effects(own)
    with pytest.raises(InputError, match=r"^rotation 0\.1 is read by fedrot-lora only and the algorithm is outside"):
        check_effects(RunConfig(algorithm="outside.methods:halved", rotation=0.1))
    with pytest.raises(InputError, match=r"^prox_mu 0\.5 is read by fedprox only"):
        check_effects(RunConfig(algorithm="outside.methods:plain", prox_mu=0.5))
    # An algorithm may refuse the default options.
    check_effects(RunConfig(algorithm="outside.methods:particular_ranks", client_ranks=(4, 2)))
    with pytest.raises(InputError, match=r"^prox_mu 0\.5 is read by fedprox only"):
        check_effects(RunConfig(algorithm="outside.methods:particular_ranks", client_ranks=(4, 2), prox_mu=0.5))
    check_effects(RunConfig(growth="outside.methods:named", stages=3))
    with pytest.raises(InputError, match=r"^warmup_rounds 2 is read by progfed only"):
        check_effects(RunConfig(growth="outside.methods:named", warmup_rounds=2))
    with pytest.raises(InputError, match=r"stage_end plateau has no effect .*:named, which never ends early"):
        check_effects(RunConfig(growth="outside.methods:named", stage_end="plateau"))
    # Nothing is known of what a growth without a record reads.
    assert record_of("growth", "outside.methods:top") is None
    assert not {"capacities", "warmup_rounds", "beta"} & unread(RunConfig(growth="outside.methods:top")).keys()


def test_nothing_of_the_working_folder_takes_the_place_of_what_is_installed(folder):
    (folder / "json.py").write_text("raise RuntimeError('this is not the standard library')\n")
    with pytest.raises(InputError, match=r"names nothing_here, which \S+json\S+ does not define"):
        known_method("algorithm", "json:nothing_here")
    assert not imports("fedit")


def test_the_list_shows_its_mathematics_and_what_it_reads(folder):
    text = method_text("outside.methods:halved")
    assert text.startswith("algorithm outside.methods:halved\nours\nsends  a and b of every adapted layer")
    assert "what a client sends is halved" in text
    assert "x <- x + d / 2." in text
    assert "--client-ranks" in text
    assert "--prox-mu" in text
    assert "the upper half (ours)" in method_text("outside.methods:named")
    assert method_text("outside.methods:top").startswith("growth outside.methods:top\n")
    assert method_text("outside.methods:whole").startswith("growth outside.methods:whole\n")
    with pytest.raises(InputError, match=r"^growth 'outside\.methods:Mine' is a class; name an instance of it"):
        method_text("outside.methods:Mine")


@pytest.mark.slow
def test_a_run_is_resumed_exported_and_replayed_by_its_name(folder, word_tokenizer, capsys):
    config = dataclasses.replace(write_run_inputs(folder, word_tokenizer), rounds=2, capacities=None, out="out")
    own = {"algorithm": DAMPED, "algorithm_options": ["share=0.3"], "growth": "outside.methods:top"}
    (folder / "asked.json").write_text(json.dumps(to_plain(config) | own))
    words = ["--config", "asked.json"]
    assert run_command(["plan", *words]) == 0
    assert run_command(["run", *words]) == 0
    stored = json.loads((folder / "out" / "config.json").read_text())
    assert own.items() <= stored.items()
    assert "objects" not in stored
    assert len(json.loads((folder / "out" / "summary.json").read_text())["stages"]) == 2
    assert run_command(["run", *words, "--algorithm-options", "share=0.4"]) == 2
    assert "holds another run: its algorithm_options is ['share=0.3'], not ['share=0.4']" in capsys.readouterr().err
    assert run_command(["run", *words, "--rounds", "3"]) == 0
    assert run_command(["export", "out", "--form", "merged", "--out", "merged"]) == 0
    assert run_command(["replay", "out", "--client", "client_0", "--round", "3"]) == 0
    assert run_command(["generate", "out", "--prompt", "a", "--max-new-tokens", "2"]) == 0
    capsys.readouterr()
    # From elsewhere the module is not found, and that is said.
    os.chdir(folder / "outside")
    sys.path[:] = [each for each in sys.path if each != str(folder)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "outside"]:
        del sys.modules[name]
    for words in (
        ["export", "--form", "merged", "--out", "m"],
        ["replay", "--client", "client_0", "--round", "1"],
        ["generate"],
    ):
        assert run_command([words[0], "../out", *words[1:]]) == 2
        assert "names the module outside, which is neither installed nor in" in capsys.readouterr().err


@pytest.mark.slow
def test_a_comparison_finds_it_in_every_process(folder, word_tokenizer):
    config = dataclasses.replace(write_run_inputs(folder, word_tokenizer), rounds=1, capacities=None, devices=1)
    (folder / "asked.json").write_text(json.dumps(to_plain(config)))
    arm = f"{DAMPED}:algorithm_options=share=0.25"
    words = ["compare", "--config", "asked.json", "--arms", arm, "--evaluations", "0", "--out", "arms"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    # As the installed command starts: the working folder is not on the path by itself.
    program = "import sys; sys.path = [each for each in sys.path if each]; from devft_jax.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    [run] = [each for each in (folder / "arms" / "runs").iterdir() if each.is_dir()]
    assert run.name.startswith("outside.methods.damped-end-to-end-s0-")
    stored = json.loads((run / "config.json").read_text())
    assert (stored["algorithm"], stored["algorithm_options"]) == (DAMPED, ["share=0.25"])

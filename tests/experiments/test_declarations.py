"""Every declared experiment can be run: its arms are valid configurations, and its claims are about its arms."""

import ast
import json

import numpy as np
import pytest

import experiments
from devft_jax.comparing.request import check_request
from devft_jax.developmental import LayerGrams, fusion_matrix
from devft_jax.developmental.growths import GrowthOptions
from experiments import growths
from experiments.all import BY_NAME, EXPERIMENTS, parser, scale_of
from experiments.claims import TITLES, AsLow, Beyond, Factor, Lower, Predicts, Question, Room, Value
from experiments.paper.table5 import doubling
from experiments.questions.stages import spaced
from experiments.scales import DEMO, PAPER, real
from experiments.study import request_of
from tests.conftest import REPOSITORY

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def scales(tmp_path_factory):
    """All scales; a real one needs only its model's architecture and files to be there."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA))
    (folder / "dolly").mkdir()
    for name in ("train.jsonl", "test.jsonl", "dolly/local_training_0.json", "dolly/global_test.json", "code.json"):
        (folder / name).write_text("{}")
    made = real(*(str(folder / name) for name in ("model", "train.jsonl", "test.jsonl", "dolly", "code.json")))
    return {"demo": DEMO, "real": made, "paper": PAPER}


def arms_of(experiment, base):
    return [part.full_name(name) for part in experiment.parts(base) for name in part.arms]


@pytest.mark.parametrize("name", BY_NAME)
def test_every_arm_is_a_valid_configuration_at_every_scale(name, scales, tmp_path):
    experiment = BY_NAME[name]
    for scale in scales.values():
        for base in experiment.bases(scale):
            rounds = set()
            for part in experiment.parts(base):
                request = check_request(*request_of(experiment, scale, base, part, tmp_path))
                assert [each.arm.name for each in request.budgets[0].arms] == list(part.arms)
                assert request.seeds == experiment.seeds_at(scale)
                rounds |= {each.rounds for each in request.budgets[0].arms}
            assert max(rounds) == base.rounds
    assert any(experiment.bases(scale) for scale in scales.values())


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=list(BY_NAME))
def test_claims_are_about_arms(experiment, scales):
    """The model of the scale real is deep enough for all of them."""
    scale = next(scales[name] for name in ("real", "paper", "demo") if name in experiment.scales)
    [base] = experiment.bases(scale)[:1]
    names = {*arms_of(experiment, base)}
    names |= {f"{name}, stage {stage}" for name in names for stage in range(1, 5)}
    assert experiment.reference in names
    assert experiment.claims
    for claim in experiment.claims:
        if isinstance(claim, Beyond):
            assert claim.why
            continue
        if isinstance(claim, Predicts):
            assert claim.measure in TITLES
            assert claim.paper[-1] in ".?"
            continue
        others = {Lower: "than", AsLow: "than", Question: "others", Factor: "than", Value: None, Room: None}[type(claim)]
        named = getattr(claim, others) if others else ()
        named = [named] if isinstance(named, str) else [*named]
        assert {claim.arm, *named} <= names
        assert claim.arm not in named
        assert claim.paper[-1] in ".?"


def test_experiments_share_their_runs(scales):
    """FedIT and DevFT with the paper's settings are the same runs in all of them."""
    base = DEMO.bases[0]
    twins = [arm for experiment in EXPERIMENTS if experiment.bases(DEMO) for arm in experiment.parts(base)[0].arms.values()]
    assert twins.count(base.devft()) > 10
    assert base.devft([2, 4, 8, 16]) == base.devft()
    assert spaced(base, 2) == [2, 16]
    assert spaced(base, 4) == list(base.capacities)
    assert doubling(scales["real"].bases[0], 8) == [4, 8, 15, 30]


def test_rates_rise_to_the_base_s():
    assert PAPER.bases[0].rates(4) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-4])
    assert PAPER.bases[0].rates(1) == pytest.approx([1e-6])
    assert PAPER.bases[2].devft()["beta"] == 0.15
    assert "beta" not in DEMO.bases[0].devft(fusion="sum")


def test_other_anchors_and_other_weights():
    generator = np.random.default_rng(0)
    leaf = generator.normal(size=(6, 5)).astype(np.float32)
    tree = dict.fromkeys(("q", "gate", "norm_mlp"), leaf)
    assign = np.array([0, 0, 1, 0, 1, 1])
    first = np.asarray(fusion_matrix(assign, beta=0.2))
    for place, anchors in (("middle", (1, 4)), ("last", (3, 5))):
        rows = growths.fused_around(assign, place, 0.2)
        np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-6)
        np.testing.assert_allclose(np.sort(rows), np.sort(first), rtol=1e-6)
        assert tuple(rows.argmax(axis=1)) == anchors
    options = GrowthOptions(capacities=(2, 6), beta=0.2)
    made = growths.last_anchor(options, 6)
    stages = [made.from_grams(stage, LayerGrams(tree), [], None) for stage in range(3)]
    assert stages[0].fuse.shape == (2, 6)
    assert stages[1].is_identity
    assert stages[2] is None
    paths = ("[0].q", "[0].gate", "[0].norm_mlp", "[1]['q'].a")
    for growth, kept in (
        (growths.without_norms, (True, True, False, True)),
        (growths.norms_alone, (False, False, True, False)),
        (growths.attention_alone, (True, False, False, False)),
        (growths.feed_forward_alone, (False, True, False, False)),
    ):
        assert tuple(map(growth(options, 6).select, paths)) == kept


def test_options_change_the_scale():
    options = parser().parse_args(["--scale", "demo", "--seeds", "7", "--set", "rounds=3", "data=microtasks:train:60"])
    scale = scale_of(options)
    assert scale.seeds == (7,)
    assert scale.bases[0].rounds == 3
    assert scale.bases[0].options["data"] == "microtasks:train:60"
    assert scale_of(parser().parse_args(["--scale", "paper", "--run"])).trains


def test_the_package_does_not_import_the_experiments_nor_they_what_is_private():
    for file in (REPOSITORY / "devft_jax").rglob("*.py"):
        assert "experiments" not in {name.split(".")[0] for name in imported(file)}
    for folder in experiments.__path__:
        for file in REPOSITORY.joinpath(folder).rglob("*.py"):
            assert not [name for name in imported(file) if "devft_jax" in name and "._" in name]


def imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)

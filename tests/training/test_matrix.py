"""Every algorithm with every kind of growth: what it learns, that it goes on bit for bit, and that chunks do not matter.

By default a subset in which every growth and most kinds of state occur; all pairs are slow.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest

from devft_jax.errors import InputError
from devft_jax.federated.algorithms import ALGORITHMS
from devft_jax.models.base import init_base
from devft_jax.reporting import Progress
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.parts import build_parts
from devft_jax.training.run import Run, train
from devft_jax.training.trainer import Trainer
from tests.tiny_run import KINDS, MODEL, CopiedInRound, write_run_inputs

QUIET = Progress(quiet=True)
GROWTHS = {
    "end-to-end": {"stage_rounds": (6,)},
    "devft": {"capacities": (2, 4), "stage_rounds": (3, 3)},
    "progfed": {"capacities": None, "stages": 2, "stage_rounds": (3, 3)},
}
# Where a method needs another rate or more of its budget to learn in six rounds of two steps.
CHOICES: dict[str, dict[str, object]] = {
    # So many steps of so small a server rate leave b too small for the mask.
    "flasc": {"server_learning_rate": 0.05, "density_down": 0.5},
    "hetlora": {"client_ranks": (4, 2, 3)},
    # A step of norm one in every matrix and round, as published, outweighs what so small a model learns in a round.
    "dofit": {"domain_step": 0.1},
}
PAIRS = [(algorithm, growth) for algorithm in ALGORITHMS for growth in GROWTHS]
# The growths in turn.
DEFAULT = [(algorithm, list(GROWTHS)[index % len(GROWTHS)]) for index, algorithm in enumerate(KINDS[:4])]
# A growth only maps layers between stages; how clients are cut into chunks and added up is the algorithm's.
IN_TURN = [(algorithm, list(GROWTHS)[index % len(GROWTHS)]) for index, algorithm in enumerate(ALGORITHMS)]
# Every link of a channel and every growth; one of them, with rows through a stage, by default.
CHANNELS = {
    ("fedit", "devft"): "topk=0.3+int8",
    ("fedsa-lora", "end-to-end"): "int4",
    ("c2a", "progfed"): "lowrank=2",
    ("ffa-lora", "progfed"): "randk=0.5+bf16",
    ("federa", "devft"): "int8",
    ("fedprox", "end-to-end"): "topk=0.5",
    ("fedavgm", "progfed"): "int4",
    ("fedadam", "devft"): "lowrank=2+int8",
    ("fedrot-lora", "devft"): "bf16",
}
SUBSET = [
    *((*pair, "none") if pair in DEFAULT else pytest.param(*pair, "none", marks=pytest.mark.slow) for pair in PAIRS),
    *(
        (*pair, channel) if pair == ("fedit", "devft") else pytest.param(*pair, channel, marks=pytest.mark.slow)
        for pair, channel in CHANNELS.items()
    ),
]
# Options of LoRA with methods that train, send or keep other factors than FedIT.
LORA: dict[str, dict[str, object]] = {
    "as by default": {},
    "pissa": {"initialization": "pissa"},
    "lora-ga": {"initialization": "lora-ga"},
    "two rates": {"lora_plus_ratio": 4.0, "rslora": True, "alpha": 4.0},
}
OTHER_LORA = [
    ("fedit", "devft", "pissa"),
    ("fedmomentum", "progfed", "pissa"),
    ("scaffold", "end-to-end", "pissa"),
    ("fedit", "devft", "lora-ga"),
    ("rolora", "progfed", "lora-ga"),
    ("fedavgm", "end-to-end", "lora-ga"),
    ("fedit", "end-to-end", "two rates"),
    ("rolora", "devft", "two rates"),
    ("rest-of-world", "progfed", "two rates"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def config(folder, word_tokenizer):
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), MODEL))
    written = write_run_inputs(folder, word_tokenizer, base=base)
    return dataclasses.replace(
        written, rounds=6, devices=1, clients_per_step=2, checkpoint_every=1, targets=("q", "v", "down"), dropout=0.1
    )


@pytest.fixture(scope="module")
def whole(config, folder):
    """The uninterrupted run of a pair, made once, and its folder as round 5 left it unsaved."""

    @functools.cache
    def run(algorithm: str, growth: str, channel: str, lora: str = "as by default") -> tuple[Run, Path]:
        out, cut = (folder / f"{algorithm}-{growth}-{channel}-{lora}{end}" for end in ("", "-cut"))
        options = chosen(config, algorithm, growth, out, channel=channel, **LORA[lora])
        return train(options, progress=CopiedInRound(5, str(out), cut)), cut

    return run


def chosen(config, algorithm, growth, out, **more):
    options = {**GROWTHS[growth], **CHOICES.get(algorithm, {}), **more}
    return dataclasses.replace(config, algorithm=algorithm, growth=growth, out=str(out), **options)


def state_of(run: Run):
    """All arrays of the newest checkpoint."""
    with RunFolder(run.folder) as folder:
        trainer = Trainer(build_parts(run.config, progress=QUIET))
        state = trainer.resume(folder, folder.checkpoints.latest_round())
    return state.full, state.server, state.last_round, [state.bank.view(full=full).of_trained() for full in (False, True)]


def assert_learns_and_goes_on(run, cut):
    assert run.summary.final_loss < run.summary.base_loss
    assert run.summary.updates_dropped == 0
    again = train(dataclasses.replace(run.config, out=str(cut)), progress=QUIET)
    assert again.summary.resumed_after == [4]
    for name in ("final_loss", "bytes_up", "bytes_down", "bytes_missed", "train_flops"):
        assert getattr(again.summary, name) == getattr(run.summary, name)
    for new, old in zip(jax.tree.leaves(state_of(again)), jax.tree.leaves(state_of(run)), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize(("algorithm", "growth", "channel"), SUBSET)
def test_it_learns_and_goes_on_bit_for_bit(whole, algorithm, growth, channel):
    assert_learns_and_goes_on(*whole(algorithm, growth, channel))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "growth", "lora"), OTHER_LORA)
def test_options_of_lora_learn_and_go_on_bit_for_bit(whole, algorithm, growth, lora):
    assert_learns_and_goes_on(*whole(algorithm, growth, "none", lora))


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "growth"), [pair for pair in IN_TURN if pair[0] != "flasc"])
def test_any_chunks_are_the_same_run(config, tmp_path, algorithm, growth):
    """All but FLASC, whose server makes whole steps of rounding; tests/federated has a round of it in any chunks."""
    # An epsilon far above the gradients: at 1e-8 AdamW makes whole steps of rounding, too.
    nearly_linear = {"epsilon": 1.0, "learning_rate": (1.0,)}
    if algorithm == "hetlora":
        # The norm of a direction near zero has a gradient of full size, whose sign may be rounding.
        nearly_linear["rank_penalty"] = 0.0
    if algorithm in ("flexlora", "fedmomentum"):
        # Their factors are larger, and so are steps of the product: at rate 1 differences by rounding grow up to tenfold
        # in a round.
        nearly_linear["learning_rate"] = (0.2,)
    two, one = (
        train(
            chosen(config, algorithm, growth, tmp_path / str(size), clients_per_step=size, **nearly_linear), progress=QUIET
        )
        for size in (2, 1)
    )
    assert two.summary.clients_per_step > one.summary.clients_per_step or algorithm == "central"
    assert one.summary.final_loss == pytest.approx(two.summary.final_loss, rel=1e-4)
    assert (one.summary.bytes_up, one.summary.bytes_down) == (two.summary.bytes_up, two.summary.bytes_down)


def test_what_excludes_each_other_says_so(config, tmp_path):
    for name, make in ALGORITHMS.items():
        if not make(config).layered:
            partly = chosen(config, name, "progfed", tmp_path / name, warmup_rounds=1, stage_rounds=(2, 1, 3))
            with pytest.raises(InputError, match=f"{name} .* all layers share"):
                train(partly, progress=QUIET)
            # Not only once the stage has come.
            assert not (tmp_path / name / "metrics.jsonl").exists()

"""Runs that begin with the adapter of another run: what is evaluated, recorded, resumed and refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from devft_jax.config.identity import anchored, identity_hash
from devft_jax.errors import InputError
from devft_jax.reporting import Progress
from devft_jax.training.run import train
from tests.tiny_run import CopiedInRound, adapter_bytes

QUIET = Progress(quiet=True)


@pytest.fixture
def begun(config, finished, tmp_path):
    """A short run that begins with the final adapter of the finished one."""
    return dataclasses.replace(
        config, adapter=str(finished.folder), growth="end-to-end", rounds=1, rank=6, out=str(tmp_path / "begun")
    )


def test_a_run_begins_with_the_final_adapter_of_another(finished, begun, tmp_path):
    run = train(begun, progress=QUIET)
    assert run.summary.start_loss == pytest.approx(finished.summary.final_loss, abs=1e-5)
    assert run.summary.start_accuracy == finished.summary.accuracy
    assert run.summary.base_loss == pytest.approx(finished.summary.base_loss, abs=1e-5)
    assert run.summary.stages[0].loss_start == pytest.approx(finished.summary.final_loss, abs=1e-5)
    stored = json.loads((run.folder / "config.json").read_text())
    assert len(stored["adapter_digest"]) == 16
    assert "began with an existing adapter" in (run.folder / "report.html").read_text()
    # The same content elsewhere is the same run; another content, or no adapter, is another one.
    shutil.copytree(finished.folder / "adapter", tmp_path / "copy")
    copied = dataclasses.replace(begun, adapter=str(tmp_path / "copy"))
    assert identity_hash(copied) == identity_hash(begun)
    assert train(copied, progress=QUIET).summary.rounds == 1
    weights = bytearray((tmp_path / "copy" / "adapter_model.safetensors").read_bytes())
    weights[-3] ^= 1
    (tmp_path / "copy" / "adapter_model.safetensors").write_bytes(weights)
    assert identity_hash(copied) != identity_hash(begun)
    for other in (copied, dataclasses.replace(begun, adapter=None)):
        with pytest.raises(InputError, match=r"holds another run: its adapter_digest is '\w{16}', not (None|'\w{16}')"):
            train(other, progress=QUIET)
    with pytest.raises(InputError, match=r"has the digest \w{16}, not adapter_digest .*: its content has changed"):
        train(dataclasses.replace(copied, adapter_digest=stored["adapter_digest"]), progress=QUIET)


def test_stages_begin_with_the_fused_adapter_of_a_stage_and_newcomers_after_a_resume_with_the_adapter(
    config, finished, tmp_path
):
    personal = dataclasses.replace(
        config,
        algorithm="local-only",
        init_from=str(finished.folder),
        stage=2,
        capacities=(2, 4),
        rounds=4,
        clients_per_round=1,
        checkpoint_every=1,
        out=str(tmp_path / "whole"),
    )
    run = train(personal, progress=CopiedInRound(2, tmp_path / "whole", tmp_path / "killed"))
    whole = finished.summary.stages[1]
    assert run.summary.start_loss == pytest.approx(whole.loss_full_after_transfer, abs=1e-5)
    # The first stage has two layers, fused from the base and from the adapter.
    assert run.summary.stages[0].loss_start not in (None, run.summary.base_loss, run.summary.start_loss)
    again = train(dataclasses.replace(personal, out=str(tmp_path / "killed")), progress=QUIET)
    assert again.summary.resumed_after == [1]
    assert again.summary.final_loss == run.summary.final_loss
    assert again.summary.personal == run.summary.personal


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rank": 3}, r"rank 3 is below rank 4 of the adapter .*; give --rank 4, or --truncate-adapter"),
        ({"targets": ("q",)}, r"targets q lacks v, which the adapter .* adapts; give --targets q,v"),
        ({"algorithm": "c2a"}, "algorithm c2a has no low-rank adapter or correction in its first state"),
        ({"adapter_digest": "0" * 16}, r"has the digest \w{16}, not adapter_digest 0{16}"),
        ({"stage": 2}, "stage 2 chooses a stage of the run that init_from names and there is none"),
        ({"init_from": "there"}, "adapter .* and init_from there both name what the run begins with; give one"),
        ({"adapter": None, "truncate_adapter": True}, "truncate_adapter True has no effect on a run that begins with a new"),
        (
            {"adapter": "nowhere"},
            "the folder .*nowhere does not exist; give --adapter the folder of a PEFT adapter or of a run",
        ),
        ({"adapter": None, "init_from": "{finished}", "stage": 4}, "stage 4 is outside 1 to 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_sentence_before_anything_is_written(begun, finished, changes, sentence):
    changes = {name: str(finished.folder) if value == "{finished}" else value for name, value in changes.items()}
    asked = dataclasses.replace(begun, **changes).with_given(changes)
    with pytest.raises(InputError, match=sentence):
        train(asked, progress=QUIET)
    assert not Path(begun.out).exists()


def test_a_run_that_has_not_finished_has_no_final_adapter(begun, copied):
    (Path(copied.out) / "summary.json").unlink()
    with pytest.raises(InputError, match=r"is a run that has not finished, .* or give --init-from .* for a stage that has"):
        anchored(dataclasses.replace(begun, adapter=copied.out))


def test_the_final_adapter_is_not_changed_by_conversion(begun, finished):
    """With rank and scale of the run that it comes from and no learning, the adapter stays the same, byte for byte."""
    still = dataclasses.replace(begun, rank=4, learning_rate=(1e-30,), schedule="constant", rounds=1)
    assert adapter_bytes(train(still, progress=QUIET).folder) == adapter_bytes(finished.folder)

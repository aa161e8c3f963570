"""Local-only and central training as runs: equal to FedIT where all three are the same, and honest where they are not."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from devft_jax.commands.cli import run_command
from devft_jax.errors import InputError
from devft_jax.evaluation.evaluator import Evaluator
from devft_jax.exporting.export import export
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.reporting import Progress
from devft_jax.training.parts import build_parts
from devft_jax.training.replay import replay
from devft_jax.training.run import train
from tests.tiny_run import MODEL, CopiedInRound, write_run_inputs

QUIET = Progress(quiet=True)


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), MODEL))
    written = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer, base=base)
    rate = (0.5,)
    return dataclasses.replace(written, optimizer="sgd", learning_rate=rate, capacities=(2, 4), rounds=4, devices=1)


@pytest.fixture(scope="module")
def runs(config, tmp_path_factory):
    """One finished run of each algorithm, with DevFT, on three clients; beside it what it left when round 4 ended."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name in ("fedit", "local-only", "central"):
        chosen = dataclasses.replace(config, algorithm=name, checkpoint_every=1, out=str(folder / name))
        made[name] = train(chosen, progress=CopiedInRound(4, chosen.out, folder / f"{name}-cut"))
    return made


def rows_of(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def clients_adapter(run, client, folder):
    """A client's adapter as `devft export` writes it."""
    export(run.folder, folder, client=client)
    return import_peft(folder, MODEL)


@pytest.mark.slow
def test_with_one_client_all_three_are_the_same(config, tmp_path):
    data = config.data.replace("client_*", "client_0")
    alone = dataclasses.replace(config, data=data, partition="iid", clients=1, clients_per_round=1)
    found = {}
    for name in ("fedit", "local-only", "central"):
        run = train(dataclasses.replace(alone, algorithm=name, out=str(tmp_path / name)), progress=QUIET)
        found[name] = (run.adapter or clients_adapter(run, "client-0", tmp_path / "exported"), run.summary)
        assert run.summary.final_loss < run.summary.base_loss - 0.1
    for adapter, summary in found.values():
        assert summary.final_loss == pytest.approx(found["fedit"][1].final_loss, abs=1e-5)
        assert summary.train_flops == found["fedit"][1].train_flops
        for leaf, same in zip(jax.tree.leaves(adapter.lora), jax.tree.leaves(found["fedit"][0].lora), strict=True):
            np.testing.assert_allclose(leaf, same, atol=1e-5)


def test_controls_send_nothing_and_see_as_much(runs):
    fedit, local, central = (runs[name] for name in ("fedit", "local-only", "central"))
    assert fedit.summary.bytes_up > 0
    for run in (local, central):
        assert run.summary.bytes_up == run.summary.bytes_down == 0
        assert run.summary.train_flops == fedit.summary.train_flops
    # Each client still gets the fused layers of a stage; what is central has them already.
    assert local.summary.bytes_stage == fedit.summary.bytes_stage > 0
    assert central.summary.bytes_stage == 0


def test_local_only_sees_fedits_cohorts_and_examples(runs):
    fedit, local = rows_of(runs["fedit"]), rows_of(runs["local-only"])
    assert [row["clients"] for row in local] == [row["clients"] for row in fedit]
    assert [row["tokens"] for row in local] == [row["tokens"] for row in fedit]
    # The first round starts from the same adapter; the second from each client's own.
    assert local[0]["loss"] == pytest.approx(fedit[0]["loss"], rel=1e-6)
    assert abs(local[1]["loss"] - fedit[1]["loss"]) > 1e-4


def test_what_is_judged_are_the_clients_own_models(runs, config, tmp_path):
    run = runs["local-only"]
    personal = run.summary.personal
    parts = build_parts(dataclasses.replace(config, algorithm="local-only"), progress=QUIET)
    for position, name in enumerate(("client_0", "client_1", "client_2")):
        judged = parts.evaluator.held_out(parts.base, clients_adapter(run, name, tmp_path / name))
        assert judged.loss == pytest.approx(personal.losses[position], rel=1e-5)
    assert len(set(personal.losses)) == 3
    assert run.summary.final_loss == pytest.approx(np.mean(personal.losses))
    assert personal.loss_spread == pytest.approx(np.std(personal.losses))
    assert run.summary.accuracy == pytest.approx(np.mean(personal.accuracies))
    assert runs["fedit"].summary.personal is None
    assert {name: run.summary.personal_models for name, run in runs.items()} == {
        "fedit": False,
        "local-only": True,
        "central": False,
    }


def test_clients_that_have_not_trained_count_as_the_untuned_base(config, tmp_path, monkeypatch):
    chosen = dataclasses.replace(
        config, algorithm="local-only", growth="end-to-end", clients_per_round=1, rounds=1, out=str(tmp_path)
    )
    judged = []
    original = Evaluator.evaluate
    monkeypatch.setattr(Evaluator, "evaluate", lambda *arguments: judged.append(1) or original(*arguments))
    summary = train(chosen, progress=QUIET).summary
    losses = summary.personal.losses
    assert sum(loss == pytest.approx(summary.base_loss, rel=1e-6) for loss in losses) == 2
    assert summary.final_loss == pytest.approx(np.mean(losses))
    # The base, the one model of all at the start, and at the end that of the one who trained and that of the others.
    assert len(judged) == 1 + 1 + 2


@pytest.mark.slow
def test_any_clients_per_step_is_the_same_run(runs, config, tmp_path):
    chosen = dataclasses.replace(config, algorithm="local-only", devices=2, clients_per_step=2, out=str(tmp_path))
    other = train(chosen, progress=QUIET)
    expected = runs["local-only"].summary.personal.losses
    np.testing.assert_allclose(other.summary.personal.losses, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["local-only", pytest.param("central", marks=pytest.mark.slow)])
def test_a_run_goes_on_bit_for_bit(runs, tmp_path, name):
    whole = runs[name]
    # The newest checkpoint is the first of the second stage.
    again = train(dataclasses.replace(whole.config, out=f"{whole.folder}-cut"), progress=QUIET)
    assert again.summary.resumed_after == [3]
    names = ["client_0", "client_1", "client_2"] if name == "local-only" else [None]
    for client in names:
        files = []
        for run in (whole, again):
            folder = tmp_path / f"{client}-{len(files)}-{run.folder.name}"
            export(run.folder, folder, client=client)
            files.append((folder / "adapter_model.safetensors").read_bytes())
        assert files[0] == files[1]
    assert again.summary.personal == whole.summary.personal
    assert again.summary.final_loss == whole.summary.final_loss


def test_a_client_is_replayed_from_its_own_adapter(runs):
    run = runs["local-only"]
    row = rows_of(run)[3]
    losses = [
        step.loss
        for client in row["clients"]
        for step in replay(run.folder, client=f"client_{client}", round=4, progress=QUIET).steps
    ]
    assert np.mean(losses) == pytest.approx(row["loss"], rel=1e-5)


def test_central_training_draws_from_the_pool(config):
    parts = build_parts(dataclasses.replace(config, algorithm="central"), progress=QUIET)
    assert [(client.name, len(client.indices)) for client in parts.data.clients] == [("pool", 24 + 12 + 17)]
    work = parts.rounds.work(0, 0)
    assert work.examples.shape == (config.clients_per_round * config.local_steps, config.batch_size)
    assert len(np.unique(work.examples)) == work.examples.size
    with pytest.raises(InputError, match="clients_per_round 4 exceeds the 3 clients"):
        build_parts(dataclasses.replace(config, algorithm="central", clients_per_round=4), progress=QUIET)


@pytest.mark.parametrize(
    ("algorithm", "participants", "devices", "expected"),
    [("fedit", 2, 1, 2), ("fedit", 3, 2, 4), ("fedit", 1, 2, 1), ("central", 3, 2, 1)],
)
def test_no_more_clients_are_in_flight_than_take_part(config, algorithm, participants, devices, expected):
    chosen = dataclasses.replace(config, algorithm=algorithm, clients_per_round=participants)
    cohort = build_parts(dataclasses.replace(chosen, devices=devices, clients_per_step=8), progress=QUIET).cohort
    assert cohort.clients_per_step == expected
    assert cohort.mesh.size == min(devices, expected)


def test_a_run_without_a_global_model_says_so(runs, tmp_path, capfd):
    run = runs["local-only"]
    assert run.adapter is None
    assert not (run.folder / "adapter").exists()
    with pytest.raises(InputError, match=r"\(local-only\) has no global model.* --client: client_0, client_1, client_2\."):
        export(run.folder, tmp_path / "a")
    with pytest.raises(InputError, match="client 'nobody' is not one of the run's: client_0"):
        export(run.folder, tmp_path / "a", client="nobody")
    with pytest.raises(InputError, match=r"\(central\) has one model for all clients; leave client 'client_0' out"):
        export(runs["central"].folder, tmp_path / "a", client="client_0")
    assert not (tmp_path / "a").exists()
    assert run_command(["generate", str(run.folder), "--prompt", "a"]) == 2
    assert "has no global model, but one for each client; choose one with --client: client_0" in capfd.readouterr().err
    assert run_command(["export", str(run.folder), "--client", "client_1", "--out", str(tmp_path / "b")]) == 0
    assert f"the adapter of client 'client_1' of {run.folder} after round 4 of 4" in capfd.readouterr().out
    words = ["--prompt", "a", "--adapter", str(tmp_path / "b"), "--max-new-tokens", "2"]
    assert run_command(["generate", str(run.folder), *words]) == 0


def test_a_clients_submodel_is_exported_too(runs, tmp_path):
    export(runs["local-only"].folder, tmp_path / "small", form="submodel-adapter", stage=1, client="client_2")
    small = dataclasses.replace(MODEL, layers=2)
    assert import_peft(tmp_path / "small" / "adapter", small).lora["q"].a.shape[0] == 2


def test_the_command_line_lists_them(capfd):
    assert run_command(["list"]) == 0
    said = capfd.readouterr().out
    assert "local-only" in said
    assert "central" in said

"""What decides whether a folder may be resumed."""

import dataclasses
import os

from devft_jax.commands.run import parse_run
from devft_jax.config.files import to_plain
from devft_jax.config.identity import anchored, identity, identity_hash
from devft_jax.config.presets import PRESETS, preset
from devft_jax.config.run_config import RunConfig


def test_alpha_follows_the_rank_and_is_stored_as_a_number():
    assert to_plain(RunConfig(rank=8))["alpha"] == identity(RunConfig(rank=8))["alpha"] == 16.0
    assert identity(RunConfig()) == identity(RunConfig(alpha=64.0))
    assert identity_hash(RunConfig()) == identity_hash(RunConfig(alpha=64.0))
    assert to_plain(parse_run(["--rank", "8", "--alpha", "64"]))["alpha"] == 64.0
    assert to_plain(parse_run(["--rank", "8", "--alpha", "auto"]))["alpha"] == 16.0
    # The presets are what was measured, or what the paper used.
    assert {name: preset(name).alpha for name in PRESETS} == dict.fromkeys(PRESETS, 64.0) | {"efficient": 8.0}
    assert {preset(name).dropout for name in ("demo", "efficient")} == {0.0}


def test_identity_ignores_execution_options_and_rounds_only():
    config = RunConfig()
    execution = dataclasses.replace(config, out="elsewhere", devices=1, clients_per_step=4, remat="full", checkpoint_every=3)
    assert identity(execution) == identity(config)
    assert identity(dataclasses.replace(config, rounds=99)) == identity(config)
    assert identity_hash(dataclasses.replace(config, rounds=99)) != identity_hash(config)
    for name, value in {"seed": 1, "rank": 8, "beta": 0.2, "data": "x.json", "dtype": "float32"}.items():
        assert identity(dataclasses.replace(config, **{name: value})) != identity(config)


def test_files_are_named_from_anywhere_and_names_stay(tmp_path, monkeypatch):
    for folder in ("lib/tiny", "inside", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a.jsonl", "b.jsonl", "blob"):
        (tmp_path / "inside" / name).write_text("{}")
    (tmp_path / "inside" / "link.jsonl").symlink_to("blob")
    monkeypatch.chdir(tmp_path / "inside")
    asked = RunConfig(
        model="../lib/tiny",
        data=("a.jsonl", "./*.jsonl", "owner/name:train", "microtasks:train:60", "link.jsonl"),
        test_data="../inside/b.jsonl",
        probe_data=".",
        cache_dir="cache",
        out="run",
    )
    work, found = tmp_path / "inside", anchored(asked)
    assert found.model == str(tmp_path / "lib" / "tiny")
    files = tuple(str(work / name) for name in ("a.jsonl", "*.jsonl"))
    assert found.data == (*files, "owner/name:train", "microtasks:train:60", str(work / "link.jsonl"))
    assert (found.test_data, found.probe_data) == (str(work / "b.jsonl"), str(work))
    assert (found.cache_dir, found.out) == (str(work / "cache"), str(work / "run"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert anchored(found) == found
    from_here = dataclasses.replace(found, model=os.path.relpath(found.model), test_data="../inside/b.jsonl")
    assert identity(from_here) == identity(found)
    assert identity_hash(from_here) == identity_hash(found)
    (work / "own.yaml").write_text("task: own")
    monkeypatch.chdir(work)
    tasks = RunConfig(evaluate_tasks=("own.yaml:20@5", "mmlu:500@5", "none.yaml"), benchmark_files="files")
    assert anchored(tasks).evaluate_tasks == (f"{work / 'own.yaml'}:20@5", "mmlu:500@5", "none.yaml")
    assert anchored(tasks).benchmark_files == str(work / "files")
    assert identity(tasks) == identity(RunConfig())
    names = RunConfig(model="meta-llama/Llama-2-7b-hf", data="databricks/databricks-dolly-15k")
    assert anchored(names) == names
    assert anchored(RunConfig(model="bundled")).model == "bundled"

"""Runs come out as adapters, merged models and submodels that compute what was trained, through the command line."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from devft_jax.commands.cli import run_command
from devft_jax.config.files import to_plain
from devft_jax.errors import InputError, RunError
from devft_jax.exporting.export import export
from devft_jax.models.architecture import PROJECTIONS
from devft_jax.models.base import init_base
from devft_jax.models.huggingface.peft.names import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from devft_jax.models.huggingface.peft.reading import import_peft
from devft_jax.models.huggingface.peft.writing import export_peft
from devft_jax.models.huggingface.reading import load_pretrained
from devft_jax.models.huggingface.writing import save_pretrained
from devft_jax.models.llama import forward
from devft_jax.models.lora import init_lora
from devft_jax.reporting import Progress
from devft_jax.storage.ownership import EXPORT_FILE
from devft_jax.storage.run_folder import RunFolder
from devft_jax.training.parts import build_parts
from devft_jax.training.run import train
from devft_jax.training.submodels import bundled_model
from devft_jax.training.trainer import Trainer
from tests.tiny_run import MODEL, write_run_inputs

QUIET = Progress(quiet=True)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 38, (2, 9)))


@pytest.fixture(scope="module")
def config(tmp_path_factory, word_tokenizer):
    """Two stages, with nothing held out."""
    base = jax.tree.map(lambda leaf: 4 * leaf, init_base(jax.random.key(0), MODEL))
    config = write_run_inputs(tmp_path_factory.mktemp("tiny"), word_tokenizer, base=base)
    return dataclasses.replace(config, test_data=None, capacities=(2, 4), targets=("q", "v", "down"), checkpoint_every=1)


@pytest.fixture(scope="module")
def tiny(config):
    """The folder of the run's model and data."""
    return Path(config.model).parent


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A run of two stages of three rounds, whose data have gone since."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    data = folder.parent / "data"
    data.mkdir()
    for path in Path(config.data).parent.glob("client_*.json"):
        shutil.copy(path, data)
    run = train(dataclasses.replace(config, data=str(data / "*.json"), out=str(folder)), progress=QUIET)
    shutil.rmtree(data)
    return run


@pytest.fixture(scope="module")
def first_stage(config, tmp_path_factory):
    """The trainer and state of the same run, as it was at the end of its first stage."""
    trainer = Trainer(build_parts(config, progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    for _ in range(3):
        trainer.round(state)
    return trainer, state


def logits(folder, adapter=None):
    model = load_pretrained(folder, dtype="float32")
    return np.asarray(forward(model.config, model.base, adapter, TOKENS))


def command(*words) -> int:
    return run_command(["export", *map(str, words)])


@pytest.mark.slow
def test_a_run_keeps_the_last_checkpoint_of_every_stage(finished):
    with RunFolder(finished.folder) as folder:
        assert folder.checkpoints.last_rounds() == {0: 3, 1: 6}
    assert {path.name for path in (finished.folder / "checkpoints").iterdir()} == {"3", "5", "6"}


def test_the_adapter_is_the_runs_own(finished, config, tmp_path, capfd):
    assert command(finished.folder, "--out", tmp_path / "out") == 0
    said = capfd.readouterr().out
    assert f"wrote the adapter of {finished.folder} after round 6 of 6 (" in said
    assert f" kB) to {tmp_path / 'out'}; load it with PEFT: AutoPeftModelForCausalLM.from_pretrained(" in said
    assert said.count("\n") == 1
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (finished.folder / "adapter" / name).read_bytes()


def test_the_merged_model_computes_what_was_trained(finished, tiny, tmp_path, capfd):
    assert command(finished.folder, "--out", tmp_path / "out", "--form", "merged", "--dtype", "float32") == 0
    said = capfd.readouterr().out
    assert said.startswith(f"wrote {tiny / 'model'} merged with the adapter of {finished.folder} after round 6 of 6")
    assert "load it with transformers: AutoModelForCausalLM.from_pretrained(" in said
    expected = logits(tiny / "model", finished.adapter)
    assert np.abs(expected - logits(tiny / "model")).max() > 0.1
    np.testing.assert_allclose(logits(tmp_path / "out"), expected, atol=1e-4)
    assert load_pretrained(tmp_path / "out").config == MODEL
    assert load_pretrained(tmp_path / "out").tokenizer("a b", add_special_tokens=False)["input_ids"] == [3, 4]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == 2


def test_a_stages_submodel_computes_what_its_clients_trained(finished, first_stage, tmp_path):
    trainer, state = first_stage
    view = trainer.parts.algorithm.view(state.server)
    expected = np.asarray(forward(MODEL, jax.device_get(state.base), jax.device_get(view), TOKENS))
    bare = np.asarray(forward(MODEL, jax.device_get(state.base), None, TOKENS))
    assert np.abs(expected - bare).max() > 0.1
    words = ("--stage", 1, "--dtype", "float32")
    assert command(finished.folder, "--out", tmp_path / "merged", "--form", "submodel", *words) == 0
    assert load_pretrained(tmp_path / "merged").config == MODEL.with_layers(2)
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, atol=1e-4)
    assert command(finished.folder, "--out", tmp_path / "both", "--form", "submodel-adapter", *words) == 0
    np.testing.assert_allclose(logits(tmp_path / "both"), bare, atol=1e-5)
    adapter = import_peft(tmp_path / "both" / "adapter", MODEL.with_layers(2))
    np.testing.assert_allclose(logits(tmp_path / "both", adapter), expected, atol=1e-4)
    fields = json.loads((tmp_path / "both" / "adapter" / ADAPTER_CONFIG_FILE).read_text())
    assert fields["base_model_name_or_path"] == str(tmp_path / "both")


@pytest.mark.slow
def test_a_stage_of_the_models_top_is_exported_on_the_whole_model(config, tiny, tmp_path):
    chosen = dataclasses.replace(config, growth="top-grow", capacities=(1, 4), rounds=2, out=str(tmp_path / "run"))
    train(chosen, progress=QUIET)
    export(tmp_path / "run", tmp_path / "merged", form="submodel", stage=1, dtype="float32")
    export(tmp_path / "run", tmp_path / "both", form="submodel-adapter", stage=1, dtype="float32")
    # Layers below the top have learned nothing yet, so that the stage's model is the full one.
    export(tmp_path / "run", tmp_path / "full", stage=1)
    expected = logits(tiny / "model", import_peft(tmp_path / "full", MODEL))
    assert np.abs(expected - logits(tiny / "model")).max() > 1e-3
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, atol=1e-4)
    adapter = import_peft(tmp_path / "both" / "adapter", MODEL)
    np.testing.assert_allclose(logits(tmp_path / "both", adapter), expected, atol=1e-4)


def test_the_full_adapter_as_of_a_stage(finished, first_stage, tmp_path):
    trainer, state = first_stage
    export(finished.folder, tmp_path / "out", stage=1)
    expected = trainer.parts.algorithm.view(trainer.transferred(state))
    imported = import_peft(tmp_path / "out", MODEL)
    for name, factors in expected.lora.items():
        np.testing.assert_allclose(imported.lora[name].a, factors.a, atol=1e-6)
        np.testing.assert_allclose(imported.lora[name].b, factors.b, atol=1e-6)
        assert np.abs(imported.lora[name].b - finished.adapter.lora[name].b).max() > 1e-3


def test_the_last_stage_is_the_model_itself(finished, tiny, tmp_path):
    said = str(export(finished.folder, tmp_path / "out", form="submodel", dtype="float32"))
    assert f"the submodel of stage 2 of {finished.folder} after round 6 of 6, 4 layers" in said
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(tiny / "model", finished.adapter), atol=1e-4)


def test_an_unfinished_run_and_one_without_checkpoints(finished, config, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    shutil.rmtree(copy / "adapter")
    shutil.rmtree(copy / "checkpoints" / "6")
    assert "after round 5 of 6" in str(export(copy, tmp_path / "five"))
    shutil.rmtree(copy / "checkpoints" / "5")
    with pytest.raises(InputError, match=r"the run in .* has not saved stage 2 yet; choose from 1, or continue the run"):
        export(copy, tmp_path / "none", form="submodel", stage=2)
    shutil.rmtree(copy / "checkpoints")
    for form in ("adapter", "submodel"):
        with pytest.raises(InputError, match="has no checkpoint yet; let it train up to its first one"):
            export(copy, tmp_path / "none", form=form)
    shutil.copytree(finished.folder / "adapter", copy / "adapter")
    assert "as it finished" in str(export(copy, tmp_path / "finished"))
    name = ADAPTER_WEIGHTS_FILE
    assert (tmp_path / "finished" / name).read_bytes() == (finished.folder / "adapter" / name).read_bytes()
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_stage_shorter_than_the_distance_of_checkpoints_can_be_exported(config, tmp_path):
    run = train(dataclasses.replace(config, checkpoint_every=100, out=str(tmp_path / "run")), progress=QUIET)
    assert "after round 3 of 6" in str(export(run.folder, tmp_path / "out", form="submodel", stage=1))


def test_a_stage_whose_checkpoint_is_gone(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    shutil.rmtree(copy / "checkpoints" / "3")
    with pytest.raises(InputError, match="no readable checkpoint of stage 1 any more; restore it, or choose from 2"):
        export(copy, tmp_path / "out", stage=1)


@pytest.mark.parametrize("change", [{"fused_precision": "packed"}, {"fused_precision": "float", "fuse_from": "original"}])
def test_a_quantised_run_is_exported_as_it_was_trained(config, tmp_path, change):
    chosen = dataclasses.replace(config, quantization="int8", **change)
    trainer = Trainer(build_parts(chosen, progress=QUIET))
    state = trainer.begin()
    trainer.begin_stage(state, [])
    state.server = jax.tree.map(lambda leaf: leaf + 0.1 if leaf.ndim else leaf, state.server)
    with RunFolder(tmp_path / "run") as folder:
        folder.write_json("config.json", to_plain(chosen))
        trainer.save(folder, state)
    view = trainer.parts.algorithm.view(state.server)
    expected = np.asarray(forward(MODEL, jax.device_get(state.base), view, TOKENS))
    export(tmp_path / "run", tmp_path / "sub", form="submodel", stage=1, dtype="float32")
    np.testing.assert_allclose(logits(tmp_path / "sub"), expected, atol=1e-4)
    full = trainer.parts.algorithm.view(trainer.transferred(state))
    export(tmp_path / "run", tmp_path / "merged", form="merged", dtype="float32")
    expected = np.asarray(forward(MODEL, trainer.parts.model.base, full, TOKENS))
    np.testing.assert_allclose(logits(tmp_path / "merged"), expected, atol=1e-4)


def test_a_peft_adapter_is_merged_into_its_base(tiny, tmp_path, capfd):
    adapter = init_lora(jax.random.key(1), MODEL, rank=3, alpha=6.0, targets=PROJECTIONS)
    lora = {name: factors.replace(b=factors.b + 0.1) for name, factors in adapter.lora.items()}
    adapter = adapter.replace(lora=lora)
    export_peft(adapter, tmp_path / "adapter", base_model=str(tiny / "model"))
    words = (tmp_path / "adapter", "--form", "merged", "--dtype", "float32")
    assert command(*words, "--out", tmp_path / "out") == 0
    assert f"merged with the adapter {tmp_path / 'adapter'} (" in capfd.readouterr().out
    np.testing.assert_allclose(logits(tmp_path / "out"), logits(tiny / "model", adapter), atol=1e-4)
    export_peft(adapter, tmp_path / "adapter")
    assert command(*words, "--out", tmp_path / "other") == 2
    assert "does not name the adapter's base; name it with --model" in capfd.readouterr().err
    assert command(*words, "--out", tmp_path / "other", "--model", tiny / "model") == 0
    with pytest.raises(InputError, match="is a PEFT adapter, which can only be exported merged; give --form merged"):
        export(tmp_path / "adapter", tmp_path / "third")
    with pytest.raises(InputError, match="is a PEFT adapter, which belongs to no stage"):
        export(tmp_path / "adapter", tmp_path / "third", form="merged", stage=1)
    with pytest.raises(InputError, match=r"lacks the tensor .* the adapter was made for|has shape .*; give the model"):
        export(tmp_path / "adapter", tmp_path / "third", form="merged", model="bundled")
    assert not (tmp_path / "third").exists()


def test_the_bundled_base_has_a_path_that_tools_load(finished, tmp_path):
    config = load_pretrained(bundled_model()).config
    export_peft(init_lora(jax.random.key(0), config, rank=2, alpha=4.0), tmp_path / "adapter", base_model="bundled")
    said = str(export(tmp_path / "adapter", tmp_path / "out", form="merged"))
    assert str(bundled_model()) in said
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "out" / name).exists()
    base, merged = load_pretrained(bundled_model()).base, load_pretrained(tmp_path / "out").base
    jax.tree.map(np.testing.assert_array_equal, base, merged)


def test_out_may_be_written_again_by_the_same_request_only(finished, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        export(finished.folder, out, form="submodel-adapter", stage=1)
    names = {path.name for path in out.iterdir()}
    assert {EXPORT_FILE, "config.json", "model.safetensors", "tokenizer.json", "adapter"} <= names
    for more in ({"form": "merged"}, {"form": "submodel-adapter", "stage": 2}):
        with pytest.raises(InputError, match="holds another export; name an absent or empty folder"):
            export(finished.folder, out, **more)
    assert {path.name for path in out.iterdir()} == names
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match=r"holds something else \(notes.txt\)"):
        export(finished.folder, tmp_path / "mine")
    with pytest.raises(InputError, match="is a file; name an absent or empty folder"):
        export(finished.folder, tmp_path / "mine" / "notes.txt")
    with pytest.raises(InputError, match="holds a run; name another folder for the export"):
        export(finished.folder, finished.folder)


@pytest.mark.parametrize("form", ["adapter", "merged", "submodel-adapter"])
def test_an_out_that_cannot_be_made(finished, tmp_path, form):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"the folder .*file/out cannot be written \(Not a directory\); choose another"):
        export(finished.folder, tmp_path / "file" / "out", form=form)


def test_a_failed_export_can_be_written_again(finished, tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(finished.folder, out, form="submodel-adapter", stage=1)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    # The model has been replaced by then, so the older adapter must not stay beside it.
    monkeypatch.setattr("devft_jax.models.huggingface.peft.writing.write_safetensors", full)
    with pytest.raises(RunError, match="No space left on device"):
        export(finished.folder, out, form="submodel-adapter", stage=1)
    with pytest.raises(InputError, match="cannot be read"):
        import_peft(out / "adapter", MODEL.with_layers(2))
    monkeypatch.undo()
    export(finished.folder, out, form="submodel-adapter", stage=1)
    import_peft(out / "adapter", MODEL.with_layers(2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--form", "submodel", "--stage", 3), "stage 3 is outside 1 to 2, the stages of the run in"),
        (("--stage", 0), "stage 0 is outside 1 to 2"),
        (("--dtype", "int8"), "dtype 'int8' is unknown; choose from auto, float32, bfloat16, float16"),
        (("--model", "/nowhere/at/all"), "the model folder /nowhere/at/all does not exist"),
        (
            ("--model", "bundled"),
            r"the checkpoint .* is of a model of other shapes \(full.lora.down.a is \(4, 24, 4\), not \(16, [0-9]+, 4\)\)",
        ),
    ],
)
def test_requests_that_cannot_be_met_are_one_sentence(finished, tmp_path, capfd, words, message):
    assert command(finished.folder, "--out", tmp_path / "out", *words) == 2
    error = capfd.readouterr().err
    assert len([line for line in error.splitlines() if line.startswith("devft: ")]) == 1
    assert re.search(message, error)
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(finished, tiny, tmp_path):
    with pytest.raises(InputError, match=r"the folder .*absent does not exist; name a run's folder"):
        export(tmp_path / "absent", tmp_path / "out")
    for folder in (tmp_path, tiny / "model"):
        with pytest.raises(InputError, match="holds neither a run nor a PEFT adapter"):
            export(folder, tmp_path / "out")
    with pytest.raises(InputError, match="form 'gguf' is unknown; choose from adapter, merged, submodel, submodel-adapter"):
        export(finished.folder, tmp_path / "out", form="gguf")
    with RunFolder(finished.folder), pytest.raises(InputError, match="in use"):
        export(finished.folder, tmp_path / "out")


def test_a_configuration_that_is_none(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    stored = json.loads((copy / "config.json").read_text())
    for fields, message in (({"a": 1}, "describes neither a run nor a model"), (stored | {"model": 5}, "model 5 is not")):
        (copy / "config.json").write_text(json.dumps(fields))
        with pytest.raises(InputError, match=message):
            export(copy, tmp_path / "out")


@pytest.mark.parametrize(
    ("clients", "sentence"),
    [
        (3, "its split lacks a usable clients"),
        ([{}, {"name": "a"}], "a client of its split lacks a usable name"),
        ([], "does not name the run's clients; restore it"),
    ],
    ids=str,
)
def test_a_split_that_names_no_clients_is_one_sentence(finished, tmp_path, clients, sentence):
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    stored = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(stored | {"algorithm": "local-only"}))
    split = json.loads((copy / "split.json").read_text())
    (copy / "split.json").write_text(json.dumps(split | {"clients": clients}))
    with pytest.raises(InputError, match=sentence):
        export(copy, tmp_path / "out", client="client_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("stored", ["float16", "float32", "bfloat16"])
def test_a_base_keeps_its_type_and_what_no_adapter_changes_its_bytes(config, tiny, tmp_path, stored):
    model = load_pretrained(tiny / "model", dtype="float32")
    base = model.base.replace(norm=model.base.norm.astype(jnp.float32))
    types = {"norm": "float32"}
    types = {name: types.get(name, stored) for name in ("embed", "norm", "head", *PROJECTIONS, "norm_attention", "norm_mlp")}
    save_pretrained(tmp_path / "base", model.config, base, dtype=types, source=tiny / "model")
    adapter = init_lora(jax.random.key(1), model.config, rank=2, alpha=4.0, targets=("q",))
    factors = adapter.lora["q"]
    adapter = adapter.replace(lora={"q": factors.replace(b=factors.b.at[1].set(0.1))})
    export_peft(adapter, tmp_path / "adapter", base_model=str(tmp_path / "base"))
    export(tmp_path / "adapter", tmp_path / "out", form="merged")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "out"))
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {"model.layers.1.self_attn.q_proj.weight"}
    assert {name: value.dtype for name, value in before.items()} == {name: value.dtype for name, value in after.items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == stored


def test_a_submodel_has_its_bases_type(finished, tiny, tmp_path):
    model = load_pretrained(tiny / "model")
    save_pretrained(tmp_path / "half", model.config, model.base, dtype="float16", source=tiny / "model")
    with pytest.warns(UserWarning, match="are not those that the run was trained on"):
        export(finished.folder, tmp_path / "out", form="submodel", stage=1, model=str(tmp_path / "half"))
    assert {value.dtype.name for value in load_file(tmp_path / "out" / "model.safetensors").values()} == {"float16"}


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_weights_that_are_not_finite_are_never_merged_silently(finished, tiny, tmp_path, monkeypatch, value, form):
    """Neither an adapter's from a folder, nor a run's from a checkpoint, nor those of a base."""
    adapter = import_peft(finished.folder / "adapter", MODEL)
    factors = adapter.lora["down"]
    broken = adapter.replace(lora=adapter.lora | {"down": factors.replace(b=factors.b.at[2, 0, 3].set(value))})
    monkeypatch.setattr("devft_jax.training.saved_adapters.as_low_rank", lambda adapter: broken)
    with pytest.raises(InputError, match=r"lora_B of down_proj has NaN or infinite values in layer 2, counted from 0"):
        export(finished.folder, tmp_path / "out", form=form)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="lora_B of down_proj has NaN or infinite values in layer 2"):
        export_peft(broken, tmp_path / "peft")


def test_a_base_or_a_sum_that_is_not_finite_names_its_tensor(finished, tiny, tmp_path):
    model = load_pretrained(tiny / "model")
    adapter = import_peft(finished.folder / "adapter", MODEL)
    blocks = model.base.blocks
    broken = model.base.replace(blocks=blocks.replace(q=blocks.q.at[1, 0, 0].set(jnp.nan)))
    with pytest.raises(
        RunError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight \(layer 1, .* the base's weights have NaN"
    ):
        save_pretrained(tmp_path / "out", model.config, broken, adapter=adapter)
    assert not list((tmp_path / "out").glob("*"))
    with pytest.warns(
        UserWarning, match=r"model\.layers\.1\.self_attn\.q_proj\.weight has NaN or infinite values in float32"
    ):
        save_pretrained(tmp_path / "out", model.config, broken)
    large = model.base.replace(blocks=blocks.replace(q=blocks.q.at[3].set(1e5)))
    with pytest.raises(
        RunError, match=r"q_proj\.weight \(layer 3, .* the merged weights have NaN or infinite values in float16"
    ):
        save_pretrained(tmp_path / "half", model.config, large, adapter=adapter, dtype="float16")


def test_an_export_is_the_same_request_from_another_folder(finished, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny)
    export(os.path.relpath(finished.folder), tmp_path / "out", model="model")
    assert json.loads((tmp_path / "out" / ADAPTER_CONFIG_FILE).read_text())["base_model_name_or_path"] == str(tiny / "model")
    monkeypatch.chdir(tmp_path)
    export(finished.folder, "out", model=os.path.relpath(tiny / "model"))


def test_what_ended_answers_in_training_ends_them_in_exports(finished, tiny, tmp_path):
    """A chat template's end of turn, which is not the tokenizer's eos."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps(split | {"ends_with": ["</s>", "h"]}))
    settings = {"temperature": 0.6, "eos_token_id": 7}
    base = tmp_path / "base"
    shutil.copytree(tiny / "model", base)
    export(run, tmp_path / "plain", form="merged", model=str(base))
    assert json.loads((tmp_path / "plain" / "generation_config.json").read_text())["eos_token_id"] == [2, 10]
    (base / "generation_config.json").write_text(json.dumps(settings))
    export(run, tmp_path / "merged", form="merged", model=str(base))
    export(run, tmp_path / "both", form="submodel-adapter", stage=1, model=str(base))
    export(run, tmp_path / "adapter", model=str(base))
    export(tmp_path / "adapter", tmp_path / "again", form="merged")
    wanted = settings | {"bos_token_id": 1, "eos_token_id": [7, 2, 10]}
    for name in ("merged", "both", "again"):
        assert json.loads((tmp_path / name / "generation_config.json").read_text()) == wanted
    for name in ("adapter", "both/adapter"):
        assert json.loads((tmp_path / name / "generation_config.json").read_text()) == {"eos_token_id": [2, 10]}
    (run / "split.json").write_text(json.dumps(split | {"ends_with": ["<|elsewhere|>"]}))
    with pytest.raises(InputError, match=r"trained answers end in '<\|elsewhere\|>', which the tokenizer .* does not have"):
        export(run, tmp_path / "other", form="merged")


@pytest.mark.parametrize("inside", ["adapter/export", "checkpoints/9"])
def test_no_export_into_what_a_run_replaces(finished, tmp_path, inside):
    with pytest.raises(InputError, match=r"is inside .*, which the run replaces; name another folder"):
        export(finished.folder, finished.folder / inside)
    assert not (finished.folder / inside).exists()


@pytest.mark.parametrize("form", ["merged", "submodel"])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_weights_that_the_run_was_not_trained_on(config, tiny, tmp_path, form, stored, recwarn):
    """The run's own base says nothing, in whichever precision it is stored; another one of the same shapes is told."""
    model, other = tmp_path / "model", tmp_path / "other"
    for folder, seed in ((model, 1), (other, 2)):
        save_pretrained(folder, MODEL, init_base(jax.random.key(seed), MODEL), dtype=stored, source=tiny / "model")
    out = tmp_path / "run"
    train(dataclasses.replace(config, model=str(model), rounds=2, dtype="bfloat16", out=str(out)), progress=QUIET)
    export(out, tmp_path / "own", form=form)
    assert not [warning for warning in recwarn if "trained on" in str(warning.message)]
    with pytest.warns(UserWarning, match=f"the weights of {other} are not those that the run was trained on"):
        export(out, tmp_path / "others", form=form, model=str(other))


def test_runs_given_objects(finished, tiny, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    stored = json.loads((copy / "config.json").read_text())

    def given(**objects):
        (copy / "config.json").write_text(json.dumps(stored | {"objects": objects}))

    given(algorithm="mine")
    with pytest.raises(InputError, match=r"the algorithm of the run in .* was passed as an object in Python"):
        export(copy, tmp_path / "out", stage=1)
    assert "as it finished" in export(copy, tmp_path / "mine").what
    given(model="Model", growth="Mine")
    with pytest.raises(
        InputError, match=r"the model of the run in .* was passed as an object in Python; name its folder with --model"
    ):
        export(copy, tmp_path / "out")
    export(copy, tmp_path / "out", model=str(tiny / "model"))
    given(growth="Mine")
    export(copy, tmp_path / "other")


@pytest.mark.parametrize(("damaged", "stage", "before"), [(6, None, 5), (6, 2, 5), (3, 1, None)])
def test_a_damaged_checkpoint_is_not_exported_nor_an_older_one_in_its_place(finished, tmp_path, damaged, stage, before):
    copy = tmp_path / "run"
    shutil.copytree(finished.folder, copy)
    for path in (copy / "checkpoints" / str(damaged) / "arrays").rglob("*"):
        if path.is_file():
            path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
            break
    words = f"delete it to resume from round {before}" if before else "no readable checkpoint of stage 1 any more"
    with pytest.raises(InputError, match=words):
        export(copy, tmp_path / "out", stage=stage)
    assert not (tmp_path / "out").exists()

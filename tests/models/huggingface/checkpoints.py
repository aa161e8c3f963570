"""What tests change in a saved model: its config, its tensors, its files."""

import json
from pathlib import Path

from safetensors.numpy import load_file, save_file

from devft_jax.models.architecture import RopeScaling
from devft_jax.models.huggingface.folder import INDEX_FILE, WEIGHTS_FILE

LLAMA3 = RopeScaling("llama3", 8.0, low_frequency_factor=1.0, high_frequency_factor=4.0, original_length=512)


def edit_config(folder: Path, **fields) -> None:
    """Set fields of a saved config; those given as None are left out."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}))


def edit_tensors(folder: Path, change) -> None:
    """Rewrite the weights after `change` has edited their dictionary in place."""
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def split_into_shards(folder: Path) -> list[str]:
    """Replace the one file of weights by three that hold every third tensor each."""
    tensors = load_file(folder / WEIGHTS_FILE)
    names = sorted(tensors)
    shards = [f"model-{index + 1:05}-of-00003.safetensors" for index in range(3)]
    for index, shard in enumerate(shards):
        save_file({name: tensors[name] for name in names[index::3]}, folder / shard)
    weight_map = {name: shards[index % 3] for index, name in enumerate(names)}
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / WEIGHTS_FILE).unlink()
    return shards

"""Converts a SentencePiece `tokenizer.model` to a fast tokenizer that gives the same ids as SentencePiece.

LLaMA and LLaMA 2 were published with such a file, and there still are folders without the `tokenizer.json` that was made
from it later. The pieces become a byte-pair encoding whose merges are ordered by score: a pair merges earlier the more
likely its piece is. Dummy prefix, collapsed white space and character map come from the file's own settings. Because the ids
determine what a model reads, the result is compared with the original on difficult texts, and refused if they differ.
"""

import importlib
from pathlib import Path
from typing import Any

from devft_jax.errors import InputError
from devft_jax.models.huggingface.safetensors import read_json

MODEL_FILE = "tokenizer.model"
CONFIG_FILE = "tokenizer_config.json"

# The setting that says whether a text begins with bos; LLaMA's tokenizers do so by default.
ADDS_BOS = "add_bos_token"

# The mark of a space inside pieces.
_SPACE = "▁"

_PROBES = (
    "Hello world\n  two",
    " answer",
    "a  b   c\t\n\n  indented\n    twice 12345 3.14",
    "### Response:",
    "ends with a space ",
    "Grüße, 日本語 你好 🙂 naïve ﬁne ½",
    "def f(x):\n\treturn {'a': [1, 2]}  # x_1\r\n",
    "",
)


def read_sentencepiece(folder: Path) -> Any:
    """The tokenizer of a folder with a `tokenizer.model` but no `tokenizer.json`.

    Args:
      folder: the model's folder.

    Raises:
      InputError: the file is of another kind, its packages are not installed, or it cannot be converted exactly.
    """
    path = folder / MODEL_FILE
    remedy = f"put the tokenizer.json of the model into {folder}"
    if _is_tiktoken(path):
        raise InputError(f"{path} is a tokenizer in tiktoken's format, which is not supported; {remedy}.")
    try:
        import sentencepiece

        messages: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    except ImportError as error:
        raise InputError(
            f"{path} is a SentencePiece model, which needs other packages; run `pip install sentencepiece protobuf`, or "
            f"{remedy}."
        ) from error
    model = messages.ModelProto()
    try:
        content = path.read_bytes()
        model.ParseFromString(content)
        original = sentencepiece.SentencePieceProcessor(model_proto=content)
    except Exception as error:  # the package's own types, and those of its protocol buffers
        raise InputError(f"{path} cannot be read as a SentencePiece model; {remedy}.") from error
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise InputError(f"{path} is a SentencePiece model of a kind other than BPE; {remedy}.")
    tokenizer = _convert(model, _settings(folder, len(model.pieces), remedy))
    for text in _PROBES:
        if tokenizer(text, add_special_tokens=False)["input_ids"] != original.encode(text):
            raise InputError(f"{path} cannot be converted exactly (it splits {text!r} differently); {remedy}.")
    return tokenizer


def _is_tiktoken(path: Path) -> bool:
    """Whether the file consists of lines `base64 rank`, like LLaMA 3's."""
    with path.open("rb") as file:
        first = file.read(256).split(b"\n")[0].split()
    return len(first) == 2 and first[0].isascii() and first[1].isdigit()


def _settings(folder: Path, vocabulary: int, remedy: str) -> dict[str, Any]:
    """The folder's settings of special tokens and chat template."""
    stored = read_json(folder / CONFIG_FILE) if (folder / CONFIG_FILE).is_file() else {}
    if any(int(index) >= vocabulary for index in stored.get("added_tokens_decoder", {})):
        raise InputError(f"{folder / CONFIG_FILE} adds tokens that are not in {MODEL_FILE}; {remedy}.")
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    tokens = {name: stored[name] for name in names if stored.get(name)}
    plain = {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}
    plain |= {ADDS_BOS: stored[ADDS_BOS]} if isinstance(stored.get(ADDS_BOS), bool) else {}
    return plain | ({"chat_template": stored["chat_template"]} if stored.get("chat_template") else {})


def _convert(model: Any, settings: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    trainer, rules = model.trainer_spec, model.normalizer_spec
    vocabulary = {piece.piece: index for index, piece in enumerate(model.pieces)}
    backend = Tokenizer(
        models.BPE(
            vocabulary,
            _merges(model.pieces, vocabulary),
            unk_token=trainer.unk_piece,
            fuse_unk=True,
            byte_fallback=trainer.byte_fallback,
        )
    )
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        # Only spaces: other white space has pieces of its own.
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    shown = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if rules.add_dummy_prefix:
        shown.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(shown)
    control = [piece.piece for piece in model.pieces if piece.type in (piece.UNKNOWN, piece.CONTROL)]
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in control])
    special = {"unk_token": trainer.unk_piece}
    special |= {"bos_token": trainer.bos_piece} if trainer.bos_piece in vocabulary else {}
    special |= {"eos_token": trainer.eos_piece} if trainer.eos_piece in vocabulary else {}
    special |= {name: text for name, text in settings.items() if name != ADDS_BOS}
    bos = special.get("bos_token")
    index = None if bos is None else backend.token_to_id(bos)
    if index is not None and settings.get(ADDS_BOS, True):
        backend.post_processor = processors.TemplateProcessing(single=[bos, "$A"], special_tokens=[(bos, index)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _merges(pieces: Any, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that forms a piece, by descending score of that piece, then by number."""
    found = []
    for piece in pieces:
        if piece.type != piece.NORMAL:
            continue
        text = piece.piece
        splits = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        inside = [pair for pair in splits if pair[0] in vocabulary and pair[1] in vocabulary]
        inside.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
        found += [(-piece.score, pair) for pair in inside]
    found.sort(key=lambda item: item[0])
    return [pair for _, pair in found]

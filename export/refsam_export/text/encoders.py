"""Text encoders: from a Hugging Face folder, and the small T5 of `nano` and `tiny`.

The folder is read tensor by tensor here, not by `from_pretrained`: no network, no remote code, and
a report of what was loaded, missing and unexpected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from refsam_export.files.tensor_files import describe, read_json_object, read_tensors
from refsam_export.text.families import TextFamily, text_family
from refsam_export.text.presets import t5_config
from refsam_trt.contract.manifest import Source
from refsam_trt.errors import CheckpointError

TEXT_PREFIX = "text_encoder."
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
VOCAB_SIZE = 1024
ASSET = files("refsam_export") / "assets" / "nano_tokenizer.json"
"""Tokenizer of `nano` and `tiny`, learnt from a word list by a program in `prove/`."""
_SMALL = {
    "nano": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 3, "num_heads": 4},
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4},
}


@dataclass(frozen=True)
class TextSource:
    """A text encoder before its weights: its configuration, its tokenizer, its tensors if any.

    `tensors` have the names of transformers' module; None means: none were given.
    """

    family: TextFamily
    config: dict[str, Any]
    tokenizer: Tokenizer
    pad_id: int
    tensors: Mapping[str, Tensor] | None
    sources: tuple[Source, ...]


def small_text_source(preset: str) -> TextSource:
    """Return the small T5 of `nano` or `tiny` (other presets: that of `nano`) without weights."""
    config = {
        "model_type": "t5",
        "vocab_size": VOCAB_SIZE,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
        **_SMALL.get(preset, _SMALL["nano"]),
    }
    tokenizer = Tokenizer.from_str(ASSET.read_text(encoding="utf-8"))
    return _checked(config, tokenizer, "the small text encoder")


def preset_text_source(preset: str) -> TextSource:
    """Return a T5 of a published size without weights, and with the tokenizer of `nano`."""
    tokenizer = Tokenizer.from_str(ASSET.read_text(encoding="utf-8"))
    return _checked(t5_config(preset), tokenizer, preset)


def read_text_folder(folder: Path) -> TextSource:
    """Read a Hugging Face folder: configuration, tokenizer, weights (one file or sharded).

    Raises:
        CheckpointError: a part is missing, unreadable or of another architecture.
    """
    config, family = _read_config(folder)
    files = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors.update(read_tensors(file))
    tokenizer_files = _tokenizer_files(folder, family)
    tokenizer = _read_tokenizer(tokenizer_files, family)
    source = _checked(config, tokenizer, str(tokenizer_files[0]))
    used = [folder / _CONFIG, *tokenizer_files, *files]
    return dataclasses.replace(
        source,
        tensors=family.encoder_part(tensors),
        sources=tuple(describe("text_encoder", file) for file in used),
    )


def text_folder_config(folder: Path) -> dict[str, Any]:
    """Return the configuration of a Hugging Face folder, its gaps filled.

    Raises:
        CheckpointError: as `read_text_folder`.
    """
    return _read_config(folder)[0]


def text_folder_files(folder: Path) -> list[Path]:
    """Return the files of a Hugging Face folder that `read_text_folder` reads.

    Raises:
        CheckpointError: as `read_text_folder`.
    """
    _, family = _read_config(folder)
    return [folder / _CONFIG, *_tokenizer_files(folder, family), *_weight_files(folder)]


def stored_text_source(config: Any, tokenizer: Any, where: str) -> TextSource:
    """Return the text encoder that our own weights file describes, without weights.

    Args:
        config: configuration as in a Hugging Face `config.json`.
        tokenizer: content of a `tokenizer.json`.
        where: the file, for the error's text.

    Raises:
        CheckpointError: another architecture, or no readable tokenizer.
    """
    if not isinstance(config, dict) or not isinstance(tokenizer, str):
        raise CheckpointError(f"{where}: damaged description of the text encoder")
    family = text_family(config, where)
    config = family.complete(config)
    family.check(config, where)
    return _checked(config, _parsed(Tokenizer.from_str, tokenizer, where), where)


def build_text_encoder(config: Mapping[str, Any]) -> Any:
    """Return transformers' module of that configuration, weights not yet set."""
    module = text_family(config, "text encoder").build(config)
    return module.eval().requires_grad_(False)


def _checked(config: dict[str, Any], tokenizer: Tokenizer, where: str) -> TextSource:
    """Return a source without weights whose tokenizer belongs to its configuration."""
    # A tokenizer file may ask for both; the runtime refuses long expressions and pads by itself.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    family = text_family(config, where)
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config["vocab_size"]:
        raise CheckpointError(
            f"{where}: has a token of id {largest}, the text encoder knows {config['vocab_size']}; "
            "it belongs to another model"
        )
    pad_id = family.check_tokenizer(tokenizer, where)
    return TextSource(family, config, tokenizer, pad_id, None, ())


def _read_config(folder: Path) -> tuple[dict[str, Any], TextFamily]:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; --text-encoder takes a Hugging Face folder"
        )
    path = folder / _CONFIG
    config = read_json_object(path)
    family = text_family(config, str(path))
    config = family.complete(config)
    family.check(config, str(path))
    return config, family


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _shards(index)
    raise CheckpointError(
        f"{folder}: no weights; expected model.safetensors or pytorch_model.bin, whole or sharded "
        "with an index"
    )


def _shards(index: Path) -> list[Path]:
    weight_map = read_json_object(index).get("weight_map")
    names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index}: no weight_map from tensors to files; fetch it again")
    if outside := sorted(name for name in names if Path(name).name != name):
        raise CheckpointError(f"{index}: names files outside of its folder: {outside}")
    if missing := sorted(name for name in names if not (index.parent / name).is_file()):
        raise CheckpointError(f"{index}: shards missing from the folder: {missing}")
    return [index.parent / name for name in sorted(names)]


def _read_tokenizer(paths: list[Path], family: TextFamily) -> Tokenizer:
    if paths[0].name == _TOKENIZER:
        return _parsed(Tokenizer.from_file, str(paths[0]), str(paths[0]))
    return _converted_tokenizer(paths, family)


def _tokenizer_files(folder: Path, family: TextFamily) -> list[Path]:
    if (folder / _TOKENIZER).is_file():
        return [folder / _TOKENIZER]
    paths = [folder / name for name in family.tokenizer_files]
    if all(path.is_file() for path in paths):
        return paths
    raise CheckpointError(
        f"{folder}: no tokenizer; expected tokenizer.json or {' and '.join(family.tokenizer_files)}"
    )


def _parsed(read: Callable[[str], Tokenizer], source: str, where: str) -> Tokenizer:
    try:
        return read(source)
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise CheckpointError(f"{where}: not a readable tokenizer: {error}") from error


def _converted_tokenizer(paths: list[Path], family: TextFamily) -> Tokenizer:
    import transformers

    reader: Any = getattr(transformers, family.tokenizer_class)  # a name made at run time
    try:
        fast = reader.from_pretrained(str(paths[0].parent), local_files_only=True)
    except Exception as error:  # whatever the conversion stumbles over
        names = " and ".join(path.name for path in paths)
        raise CheckpointError(
            f"{paths[0]}: {names} are not a readable {family.title} tokenizer: {error}"
        ) from error
    tokenizer: Tokenizer = fast.backend_tokenizer
    return tokenizer

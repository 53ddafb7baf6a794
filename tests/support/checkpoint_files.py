"""Weight files as other programs write them, small, from models with realistic weights."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from reference_models import model
from safetensors.torch import save_file
from torch import Tensor

from refsam_export.refsam.model.sam import PromptEncoder
from refsam_export.refsam.own_file import METADATA_KEY
from refsam_export.text.encoders import ASSET, VOCAB_SIZE, small_text_source

GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
T5_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": VOCAB_SIZE,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "dropout_rate": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def sam_tensors(preset: str = "tiny", seed: int = 1) -> dict[str, Tensor]:
    """SAM's keys (refsam-model 8.3): no adapters, and the whole prompt encoder."""
    of = model(preset, seed)
    grid, side = of.config.grid_size, of.config.image_size
    prompt_encoder = PromptEncoder(256, (grid, grid), (side, side), 16).state_dict()
    tensors = {
        key: value.clone()
        for key, value in of.state_dict().items()
        if key.startswith(("image_encoder.", "mask_decoder.")) and "_Adapter." not in key
    }
    tensors |= {f"prompt_encoder.{key}": value for key, value in prompt_encoder.items()}
    tensors[GAUSSIAN] = of.pe.gaussian.clone()
    return tensors


def save_sam(path: Path, tensors: Mapping[str, Tensor] | None = None, **options: Any) -> Path:
    torch.save(dict(tensors or sam_tensors()), path, **options)
    return path


def refsam_tensors(preset: str = "tiny", seed: int = 2) -> dict[str, Tensor]:
    """Everything but the text encoder, by canonical key."""
    state = model(preset, seed).state_dict()
    return {k: v.clone() for k, v in state.items() if not k.startswith("text_encoder.")}


def refsam_record(preset: str = "tiny", *, with_text: bool = False) -> dict[str, Any]:
    record = {"schema": 1, "configuration": model(preset).config.to_json()}
    if with_text:
        text = {"text_encoder": small_text_source(preset).config}
        record |= text | {"tokenizer": ASSET.read_text(encoding="utf-8")}
    return record


def save_refsam(
    path: Path,
    tensors: Mapping[str, Tensor] | None = None,
    record: Mapping[str, Any] | str | None = None,
) -> Path:
    """Our file, without text encoder unless told."""
    metadata = record if isinstance(record, str) else json.dumps(record or refsam_record())
    save_file(dict(tensors or refsam_tensors()), path, {METADATA_KEY: metadata})
    return path


@cache
def t5_tensors() -> dict[str, Tensor]:
    """A whole sequence-to-sequence T5, decoder and tied copies included, as old files hold it."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(5)
    state: dict[str, Tensor] = T5ForConditionalGeneration(T5Config(**T5_CONFIG)).state_dict()
    return {key: value.clone() for key, value in state.items()}


def save_t5(
    folder: Path,
    save_weights: Callable[[Path, dict[str, Tensor]], None] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    **config: Any,
) -> Path:
    """A Hugging Face folder as wide as the text encoder of `tiny`; `config` changes its file."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**T5_CONFIG, **config}))
    (folder / "tokenizer.json").write_text(ASSET.read_text(encoding="utf-8"))
    (save_weights or whole_safetensors)(folder, dict(tensors or t5_tensors()))
    return folder


def whole_safetensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def whole_bin(folder: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def sharded_safetensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    _shards(folder, tensors, "model", "safetensors", save_file)


def sharded_bin(folder: Path, tensors: dict[str, Tensor]) -> None:
    _shards(folder, tensors, "pytorch_model", "bin", torch.save)


def _shards(
    folder: Path,
    tensors: dict[str, Tensor],
    stem: str,
    suffix: str,
    save: Callable[[dict[str, Tensor], Path], None],
) -> None:
    names = [f"{stem}-0000{index}-of-00003.{suffix}" for index in (1, 2, 3)]
    weight_map = {key: names[index % 3] for index, key in enumerate(sorted(tensors))}
    for name in names:
        save({k: v for k, v in tensors.items() if weight_map[k] == name}, folder / name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))


LAYOUTS = {
    "safetensors": whole_safetensors,
    "sharded safetensors": sharded_safetensors,
    "bin": whole_bin,
    "sharded bin": sharded_bin,
}

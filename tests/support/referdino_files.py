"""State dictionaries in the official layout, written out here: LoRA apart, tied names, buffers."""

import collections
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refsam_export.referdino.model.referdino import ReferDino

_DEFORMABLE = ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
_FUSION = ("v_proj", "l_proj", "values_v_proj", "values_l_proj", "out_v_proj", "out_l_proj")


def lora_names(num_encoder_layers: int, num_decoder_layers: int) -> list[str]:
    """Return the linear layers that have LoRA (referdino-model 1.4, rule 3)."""
    encoder, decoder = "transformer.encoder", "transformer.decoder"
    names = [f"{decoder}.ref_point_head.layers.{i}" for i in range(2)]
    for i in range(num_encoder_layers):
        names += [f"{encoder}.layers.{i}.self_attn.{part}" for part in _DEFORMABLE]
        names += [
            f"{encoder}.{kind}.{i}.linear{j}" for kind in ("layers", "text_layers") for j in (1, 2)
        ]
        names += [f"{encoder}.fusion_layers.{i}.attn.{part}" for part in _FUSION]
    for i in range(num_decoder_layers):
        names += [f"{decoder}.layers.{i}.cross_attn.{part}" for part in _DEFORMABLE]
        names += [f"{decoder}.layers.{i}.linear{j}" for j in (1, 2)]
    return names


def with_lora(
    of: ReferDino, rank: int, seed: int = 0
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return a state with pairs of LoRA, and the weights that it stands for, both in float64."""
    generator = torch.Generator().manual_seed(seed)
    state = {key: value.double() for key, value in of.state_dict().items()}
    expected = dict(state)
    for name in lora_names(of.config.encoder_layers, of.config.decoder_layers):
        rows, columns = state[f"{name}.weight"].shape
        a = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
        b = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
        state[f"{name}.lora_A"], state[f"{name}.lora_B"] = a, b
        expected[f"{name}.weight"] = expected[f"{name}.weight"] + b @ a / rank
    return state, expected


def with_tied_names(state: Mapping[str, Tensor], num_decoder_layers: int) -> dict[str, Tensor]:
    """Return a state with the second names of tied tensors (rule 2), and with what is dropped."""
    whole = dict(state)
    for key, value in state.items():
        for layer in range(num_decoder_layers):
            for prefix in ("temporal_decoder.0.", "transformer.decoder.bbox_embed.0."):
                if key.startswith(prefix):
                    other = prefix.replace(".0.", f".{layer}.") + key.removeprefix(prefix)
                    whole[other] = value
                    if "bbox" in other:
                        whole[other.removeprefix("transformer.decoder.")] = value
        if key.startswith("transformer.decoder.ref_point_head."):
            whole[key.removeprefix("transformer.decoder.")] = value
        if match := re.match(r"(backbone.*attn\.)relative_position_bias_table", key):
            whole[f"{match[1]}relative_position_index"] = torch.zeros(1, dtype=torch.long)
    width = state["bert.embeddings.word_embeddings.weight"].shape[1]
    whole["bert.pooler.dense.weight"] = torch.zeros(width, width)
    whole["bert.embeddings.position_ids"] = torch.zeros(1, 4, dtype=torch.long)
    whole["transformer.total_params"] = torch.zeros(1)
    return whole


def write_official(path: Path, state: Mapping[str, Tensor]) -> Path:
    """Write a file as the official trainer does, counts and a numpy scalar beside the tensors."""
    torch.save(
        {
            "model_state_dict": dict(state),
            "epoch": 3,
            "lr_scheduler": {"milestones": collections.Counter([2, 4]), "gamma": 0.1},
            "best_loss": np.float64(0.25),
        },
        path,
    )
    return path


def write_vocabulary(folder: Path, words: list[str]) -> Path:
    """Write a text encoder's folder that has nothing but `vocab.txt`."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    return folder

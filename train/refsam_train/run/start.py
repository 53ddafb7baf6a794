"""The model that a run starts from: files where given, PyTorch's own initial values elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from refsam_export.refsam.checkpoint import LoadedModel, canonical_tensors, load_model
from refsam_export.refsam.model.config import TEXT_SCALE
from refsam_export.refsam.model.itm import ITM_NAMES
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.text.encoders import build_text_encoder
from refsam_train.learn.local_attention import look_at_neighbours, tell_places
from refsam_train.recipe import Recipe
from refsam_trt.errors import CheckpointError, UsageError

_DENSE_GAIN = 8.0


@dataclass(frozen=True)
class Sources:
    """Files to start from, None for none (see `refsam_export.refsam.checkpoint.load_model`)."""

    sam_checkpoint: Path | None = None
    checkpoint: Path | None = None
    text_encoder: Path | None = None


def start_model(recipe: Recipe, sources: Sources) -> LoadedModel:
    """Return the model of step 0.

    Whatever no file gives has PyTorch's default initial values (refsam-model 4.2), except that
    adapters begin as the identity and that position tables of a model without a pre-trained
    backbone are filled. So have the tensors that the recipe calls `fresh`, whatever the files say.

    Raises:
        CheckpointError: a file that cannot be used, or the model of an ablation.
        UsageError: `fresh` of the recipe names no tensor.
    """
    loaded = load_model(
        recipe.preset,
        sam_checkpoint=sources.sam_checkpoint,
        checkpoint=sources.checkpoint,
        text_encoder=sources.text_encoder,
        random_init=recipe.seed,
    )
    if not loaded.model.config.hda_levels:
        raise CheckpointError(
            f"{sources.checkpoint}: an ablation without Dense Attention; training needs "
            "hda_levels 1 or 4"
        )
    needs_text = any(k.startswith("text_encoder.") for k in (*loaded.missing, *recipe.fresh))
    with seeded(recipe.seed):
        text_encoder = build_text_encoder(loaded.text_config) if needs_text else None
        fresh = RefSam(loaded.model.config, text_encoder, loaded.model.text_width)
        for name, parameter in fresh.named_parameters():
            if "_Adapter.D_fc2." in name:  # adapters are the identity then
                nn.init.zeros_(parameter)
        if recipe.mode == "full":
            _fill_for_full_training(fresh)
    initial, tensors = canonical_tensors(fresh), canonical_tensors(loaded.model)
    anew = [key for key in tensors if key.startswith(recipe.fresh)]
    if unknown := [name for name in recipe.fresh if not any(k.startswith(name) for k in tensors)]:
        raise UsageError(f"recipe {recipe.name}: fresh: no tensor begins with {', '.join(unknown)}")
    for key in {*loaded.missing, *anew}:
        tensors[key].data.copy_(initial[key].data)
    return loaded


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw initial values from this seed and leave PyTorch's own state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _fill_for_full_training(model: RefSam) -> None:
    """Bring the decoder's inputs to one scale: words have unit length, so their elements are 1/16.

    PyTorch's values would drown them: learned tokens and a track token of unit variance beside
    words in the first self-attention, a dense prompt ten times smaller than the position encoding.
    """
    tell_places(model.image_encoder.pos_embed)
    look_at_neighbours(model.image_encoder)
    decoder = model.mask_decoder
    with torch.no_grad():
        decoder.mask_tokens.weight.mul_(TEXT_SCALE)
        decoder.iou_token.weight.mul_(TEXT_SCALE)
        itm: Any = getattr(model, ITM_NAMES[model.config.itm])
        (itm.norm if model.config.itm == "ffn" else itm.norm_feat).weight.mul_(TEXT_SCALE)
        first = decoder.transformer.layers[0].self_attn
        for projection in (first.q_proj, first.k_proj, first.v_proj):
            projection.weight.div_(TEXT_SCALE)
        for convolution in (model.dense_conv, *model.dense_conv2):
            convolution.weight.mul_(_DENSE_GAIN)
            convolution.bias.zero_()

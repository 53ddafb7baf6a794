"""Models with realistic weights, and their graphs run as PyTorch modules, for the export tests."""

from copy import copy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from refsam_export.parity.inputs import EXPRESSIONS, moving_frames
from refsam_export.refsam.checkpoint import LoadedModel, empty_model, load_model
from refsam_export.refsam.graphs import build_graphs
from refsam_export.refsam.init.fill import realistic_init
from refsam_export.refsam.model.config import preset
from refsam_export.refsam.model.refsam import RefSam
from refsam_export.text.encoders import small_text_source
from refsam_trt.contract.refsam import contract
from refsam_trt.image.preprocess import Preprocessor


@cache
def loaded(preset: str, seed: int = 0) -> LoadedModel:
    """A model whose every tensor comes from `realistic_init`; shared, so never change it."""
    return load_model(preset, random_init=seed)


def model(preset: str, seed: int = 0) -> RefSam:
    return loaded(preset, seed).model


@cache
def variant(preset_name: str = "tiny", seed: int = 0, **changes: object) -> RefSam:
    """A model of another configuration, weights as in `loaded`; shared, so never change it."""
    text = small_text_source(preset_name)
    of = empty_model(replace(preset(preset_name), **changes), text.config)
    realistic_init(of, seed)
    return of


SHALLOW = {"depth": 5, "global_blocks": (1, 2, 3, 4)}
"""One windowed block, four global ones, adapters in the last three: all kinds, as few as can be."""


@cache
def loaded_shallow() -> LoadedModel:
    """`tiny` with the fewest blocks, for what is the same in each: an export takes 5/8 the time."""
    return replace(loaded("tiny"), model=variant("tiny", **SHALLOW))


def with_all_masks(of: RefSam) -> RefSam:
    """The same model, weights shared, whose decoder returns all four masks of SAM."""
    every = copy(of)
    every.config = replace(of.config, mask_select="all")
    return every


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference over the largest absolute expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def image_of(of: RefSam, index: int = 0) -> Tensor:
    frame = moving_frames(index + 1, seed=11)[index]
    return torch.from_numpy(Preprocessor(frame.shape[:2], of.config.preprocess)(frame))


def tokens(preset: str, *texts: str, extra_pads: int = 0) -> tuple[Tensor, Tensor]:
    rows = [loaded(preset).tokenizer.encode(text).ids for text in texts]
    longest = max(map(len, rows)) + extra_pads
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


def run_graphs(
    of: RefSam,
    split: str,
    form: str,
    ids: Tensor,
    mask: Tensor,
    token: Tensor,
    has_track: Tensor,
) -> dict[str, Tensor]:
    """Run the three graphs one after another and return all their outputs by name."""
    config = of.config
    spec = contract(config.image_size, config.grid_size, split, hda_levels=config.hda_levels)
    graphs = build_graphs(of, split, form)
    with torch.no_grad():
        frame = graphs["image_encoder"](image_of(of))
        text = graphs["text_encoder"](ids, mask)
        step = graphs["decoder_step"](*frame, *text, mask > 0, token, has_track)
    names = [t.name for name in graphs for t in spec[name].outputs]
    return dict(zip(names, (*frame, *text, *step), strict=True))


def reference(of: RefSam, text: str, token: Tensor | None, preset: str) -> dict[str, Tensor]:
    """One expression alone, unpadded, SAM's own attention: the slow, obvious way."""
    ids, mask = tokens(preset, text)
    with torch.no_grad():
        embedding, features = of.encode_image(image_of(of))
        words, sentence = of.encode_text(ids, mask)
        has_track = torch.tensor([token is not None])
        given = torch.zeros(1, 256) if token is None else token[None]
        out = of.step(embedding, features, words, mask > 0, sentence, given, has_track)
    return {
        "image_embedding": embedding,
        "hda_features": features,
        "words": words,
        "sentence": sentence,
        **out._asdict(),
    }


def track_token(of: RefSam, preset: str) -> Tensor:
    return reference(of, EXPRESSIONS[0], None, preset)["next_track_token"][0]

"""The reference gives the figures that the official modules gave (referdino-model 12)."""

import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from referdino_golden import CASES, Case, case, figures, folded_weights, record
from referdino_twin import run_clip
from torch import Tensor, nn

from refsam_export.referdino.model.config import preset
from refsam_export.referdino.model.grounding import class_score
from refsam_export.referdino.model.referdino import ReferDino
from refsam_export.referdino.reference import Clip, Reference, full_size, normalised
from refsam_export.referdino.tokenizer import wordpiece
from refsam_trt.families.referdino.blocks import sentence, text_blocks
from refsam_trt.families.referdino.selection import best_slot, label_map, slots_above, union_mask
from refsam_trt.text.tokenizer import tidied

FRAME = 1
"""The frame that intermediate tensors were recorded of."""
STEP = 3
"""Every third cell was recorded."""
EXACT, STORED_AS_SINGLE, SINGLE = 1e-10, 6e-8, 2e-5
SINGLE_MASKS = 1e-4
"""Of case b0 in float32: where references are 1, float32 cancels."""

ELSEWHERE = {
    *("input_ids", "position_ids", "text_self_mask"),
    *("proposal_ids", "track_permutations", "pruned_ids0", "pruned_ids1", "pruned_ids2"),
    *("reference0", "reference1"),
    *("best_slot", "union_slots", "best_mask_original", "union_mask_original"),
}
"""What other tests than those of all tensors compare."""


@functools.cache
def golden_model(dtype: torch.dtype) -> ReferDino:
    model = ReferDino(preset("tiny"))
    weights = folded_weights()
    expected = model.state_dict().keys()
    model.load_state_dict({key: value for key, value in weights.items() if key in expected})
    return model.to(dtype)


@dataclass(frozen=True)
class Run:
    clip: Clip
    inner: dict[str, list[Tensor]]
    """Outputs of modules by name, one per call."""


def watched(model: ReferDino) -> dict[str, nn.Module]:
    encoder, decoder = model.transformer.encoder, model.transformer.decoder
    temporal = model.temporal_decoder[0]
    return {
        "bert": model.bert,
        **{f"swin{i}": model.backbone[0].get_submodule(f"norm{i}") for i in range(4)},
        **{f"src{i}": projection for i, projection in enumerate(model.input_proj)},
        "enc0_image": encoder.layers[0],
        "enc0_text": encoder.text_layers[0],
        "memory": encoder.layers[-1],
        "proposal": model.transformer.enc_output_norm,
        **{f"dec{i}": layer for i, layer in enumerate(decoder.layers)},
        "temporal0_sentence": temporal.layer[0].decoder,
        "mask0_embed": model.mask_decoder[0],
        "mask_embed": model.mask_decoder,
    }


def run(name: str, dtype: torch.dtype, selections: list[Tensor] | None = None) -> Run:
    model, golden = golden_model(dtype), case(name)
    inner: dict[str, list[Tensor]] = {key: [] for key in watched(model)}

    def keep(outputs: list[Tensor]):
        def hook(_module: nn.Module, _arguments: object, out: Tensor | tuple[Tensor, ...]) -> None:
            outputs.append(out if isinstance(out, Tensor) else out[0])

        return hook

    handles = [
        module.register_forward_hook(keep(inner[key])) for key, module in watched(model).items()
    ]
    try:
        reference = Reference(model, record()["special_ids"])
        clip = reference.run(normalised(golden.frames, dtype), golden["input_ids"], selections)
    finally:
        for handle in handles:
            handle.remove()
    return Run(clip, inner)


@functools.cache
def exact(name: str) -> Run:
    return run(name, torch.float64)


@functools.cache
def single(name: str) -> Run:
    """Float32, with the recorded selection: its noise alone can exchange neighbours."""
    forced = [frame.selected_ids for frame in exact(name).clip.grounding]
    return run(name, torch.float32, forced)


def joined(tensors: list[Tensor]) -> np.ndarray:
    return torch.cat(tensors).numpy()


def cell_rows(outputs: list[Tensor]) -> np.ndarray:
    return outputs[FRAME][0, ::STEP].numpy()


def channel_first(stage: Tensor) -> np.ndarray:
    return stage[0].permute(2, 0, 1).numpy()


def recorded(of: Run, golden: Case) -> dict[str, np.ndarray]:
    """Return every tensor that was recorded for a case, but ids and masks."""
    clip, inner, best = of.clip, of.inner, int(golden["best_slot"])
    memory = torch.cat(inner["memory"])
    text_mem = torch.cat([frame.text_mem for frame in clip.grounding])
    x16 = torch.cat([frame.x16 for frame in clip.grounding])
    token_mask = torch.ones(1, text_mem.shape[1], dtype=torch.bool)
    mask_embed = torch.cat(inner["mask_embed"])
    levels = torch.cat([inner[f"src{i}"][FRAME].flatten(2) for i in range(4)], dim=2)
    values = {
        "bert": inner["bert"][0][0].numpy(),
        "text_embed": clip.text_embed[0].numpy(),
        **{f"swin{i}_frame1": channel_first(inner[f"swin{i}"][FRAME]) for i in range(4)},
        "src_frame1_rows": levels[0].T[::STEP].numpy(),
        "enc0_image_frame1_rows": cell_rows(inner["enc0_image"]),
        "enc0_text_frame1": inner["enc0_text"][FRAME][0].numpy(),
        "memory_frame1_rows": cell_rows(inner["memory"]),
        "memory_row_mean": memory.mean(-1).numpy(),
        "text_mem": text_mem.numpy(),
        "proposal_score": class_score(torch.cat(inner["proposal"]), text_mem, token_mask).numpy(),
        **{f"dec{i}_frame1": inner[f"dec{i}"][FRAME][0].numpy() for i in range(3)},
        "reference2": joined([frame.ref for frame in clip.grounding]),
        "hs": joined([frame.hs for frame in clip.grounding]),
        "x16_frame1": x16[FRAME].numpy(),
        "x16_mean": x16.mean((-1, -2)).numpy(),
        "track_memory_last": clip.memories[-2],
        "temporal0_sentence": inner["temporal0_sentence"][0].transpose(0, 1).numpy(),
        "hs_v": clip.enhanced.hs_v.numpy(),
        "logits": class_score(clip.enhanced.hs_v, text_mem, token_mask).numpy(),
        "boxes": clip.enhanced.box.numpy(),
        "mask0_embed": inner["mask0_embed"][0].numpy(),
        "mask_embed": mask_embed.numpy() if golden.name == "a0" else mask_embed[[FRAME]].numpy(),
        "mask_logits": clip.mask_logits.numpy(),
        "mask_logits_frame1": clip.mask_logits[FRAME].numpy(),
        "mean_prob": clip.enhanced.score.mean(0).numpy(),
        "best_mask_logits_f64": clip.mask_logits[:, best].numpy(),
        "best_logits_original_frame1": full_size(
            clip.mask_logits[FRAME, best], golden.original_hw
        ).numpy(),
    }
    return {name: value for name, value in values.items() if name in golden.names}


def relative(value: np.ndarray, expected: np.ndarray) -> float:
    assert value.shape == expected.shape
    return float(np.abs(value - expected).max() / np.abs(expected).max())


def ids_of(of: Run) -> list[np.ndarray]:
    """Return proposals and kept ids, each [T, count]."""
    config = preset("tiny")
    counts = np.cumsum([config.num_queries, *config.num_kept])[:-1]
    return np.split(joined([frame.selected_ids for frame in of.clip.grounding]), counts, axis=1)


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_in_double_precision(name: str):
    golden, values = case(name), recorded(exact(name), case(name))
    assert set(values) == golden.names - ELSEWHERE
    for key, value in values.items():
        bound = STORED_AS_SINGLE if golden[key].dtype == np.float32 else EXACT
        assert relative(value, golden[key]) < bound, key


@pytest.mark.parametrize("name", CASES)
def test_every_tensor_in_single_precision(name: str):
    golden, values = case(name), recorded(single(name), case(name))
    for key, value in values.items():
        is_mask = name == "b0" and ("mask" in key or "logits_original" in key)
        assert relative(value, golden[key]) < (SINGLE_MASKS if is_mask else SINGLE), key


@pytest.mark.parametrize("name", CASES)
def test_ids(name: str):
    golden, (proposals, *kept) = case(name), ids_of(exact(name))
    scores = np.take_along_axis(golden["proposal_score"], proposals, axis=1)
    expected = np.take_along_axis(
        golden["proposal_score"], golden["proposal_ids"].astype(int), axis=1
    )
    assert np.array_equal(scores, expected)  # equal but for the order of exact ties
    assert np.array_equal(np.sort(proposals), np.sort(golden["proposal_ids"]))
    for layer, ids in enumerate(kept):
        assert np.array_equal(ids, golden[f"pruned_ids{layer}"]), layer
    assert np.array_equal(exact(name).clip.permutations[1:], golden["track_permutations"])


@pytest.mark.parametrize("name", CASES)
def test_references_of_every_layer(name: str):
    """The boxes that enter a layer, gathered by what it keeps."""
    model, golden = golden_model(torch.float64), case(name)
    entered: list[Tensor] = []
    handles = [
        layer.register_forward_pre_hook(lambda _module, arguments: entered.append(arguments[2]))
        for layer in model.transformer.decoder.layers
    ]
    Reference(model, record()["special_ids"]).run(
        normalised(golden.frames, torch.float64), golden["input_ids"]
    )
    for handle in handles:
        handle.remove()
    for layer in range(3):
        boxes = joined(entered[layer::3])
        ids = golden[f"pruned_ids{layer}"].astype(int)[..., None]
        assert relative(np.take_along_axis(boxes, ids, axis=1), golden[f"reference{layer}"]) < EXACT


@pytest.mark.parametrize("name", CASES)
def test_single_precision_chooses_the_same_by_value(name: str):
    """Ids may exchange where scores differ by less than float32's noise, and nowhere else."""
    free = run(name, torch.float32)
    golden, (proposals, *_) = case(name), ids_of(free)
    exact_scores = golden["proposal_score"]
    scores = np.take_along_axis(exact_scores, proposals, axis=1)
    noise = 1e-4 * np.ptp(exact_scores)
    assert (np.diff(scores, axis=1) < noise).all()
    assert (scores[:, -1] > np.sort(exact_scores)[:, -proposals.shape[1]] - noise).all()
    assert np.array_equal(single(name).clip.permutations[1:], golden["track_permutations"])


def unpacked(bits: np.ndarray, width: int) -> np.ndarray:
    return np.unpackbits(bits, axis=-1)[..., :width].astype(bool)


@pytest.mark.parametrize("name", CASES)
def test_slots_and_masks(name: str):
    golden, clip = case(name), exact(name).clip
    score = clip.enhanced.score.numpy()
    slots = slots_above(score, record()["union_threshold"])
    assert best_slot(score) == golden["best_slot"]
    assert np.array_equal(slots, golden["union_slots"])
    logits = full_size(clip.mask_logits, golden.original_hw).numpy()
    best = unpacked(golden["best_mask_original"], golden.original_hw[1])
    assert np.array_equal(logits[:, best_slot(score)] > 0, best)
    union = unpacked(golden["union_mask_original"], golden.original_hw[1])
    assert np.array_equal(np.stack([union_mask(frame[slots]) for frame in logits]), union)


def test_label_map():
    """Two expressions on one video (Ref-DAVIS17)."""
    best = [
        full_size(
            exact(name).clip.mask_logits[:, int(case(name)["best_slot"])], case(name).original_hw
        )
        for name in ("a0", "a1")
    ]
    labels = np.stack([label_map(frame) for frame in torch.stack(best, dim=1).numpy()])
    assert np.array_equal(labels, figures()["merge/label_map_a0_a1"])


@pytest.mark.parametrize("name", CASES)
def test_tokens_and_blocks(name: str):
    golden = case(name)
    source = wordpiece(record()["vocab"])
    text = sentence(tidied(golden.expression, lowercase=True))
    ids = np.array(source.tokenizer.encode(text).ids)
    assert sorted(source.special_ids) == record()["special_ids"]
    assert np.array_equal(ids, golden["input_ids"])
    positions, mask = text_blocks(ids, source.special_ids)
    assert np.array_equal(positions, golden["position_ids"])
    assert np.array_equal(mask, golden["text_self_mask"])


def test_the_twin_gives_them_too():
    """What the reference is compared with where these figures are absent."""
    golden = case("b0")
    weights = {key: value.numpy() for key, value in folded_weights().items()}
    heads = record()["sizes"]["bert"]["heads"]
    clip = run_clip(weights, golden.frames, golden["input_ids"], record()["special_ids"], heads)
    best = clip.mask_logits[:, int(golden["best_slot"])]
    assert relative(best, golden["best_mask_logits_f64"]) < EXACT
    assert np.array_equal(clip.permutations[1:], golden["track_permutations"])

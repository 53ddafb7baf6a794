"""The model of step 0: files where given, PyTorch's values elsewhere, heads that look around."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_training import fresh_model, read_tiny

from refsam_export.refsam.checkpoint import canonical_tensors, save_source
from refsam_train.learn.local_attention import tell_places
from refsam_train.run.start import Sources, start_model
from refsam_trt.errors import CheckpointError, UsageError


def test_the_start_is_a_function_of_the_seed_and_leaves_the_global_state(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    before = torch.get_rng_state()
    first, again = (canonical_tensors(fresh_model(recipe).model) for _ in range(2))
    other = canonical_tensors(fresh_model(read_tiny(tmp_path, seed="4")).model)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["dense_conv.weight"], other["dense_conv.weight"])


def test_adapters_begin_as_the_identity(tmp_path: Path) -> None:
    tensors = canonical_tensors(fresh_model(read_tiny(tmp_path)).model)
    second = [key for key in tensors if "_Adapter.D_fc2." in key]
    assert len(second) == 16
    assert not any(tensors[key].any() for key in second)
    assert tensors["image_encoder.blocks.4.MLP_Adapter.D_fc1.weight"].any()


def test_weights_of_a_file_are_kept(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    source = fresh_model(read_tiny(tmp_path, seed="9"))
    save_source(tmp_path / "w.safetensors", source)
    started = start_model(recipe, Sources(checkpoint=tmp_path / "w.safetensors"))
    tensors = canonical_tensors(source.model)
    for key, value in canonical_tensors(started.model).items():
        assert torch.equal(value, tensors[key]), key


def test_weights_of_another_preset_are_refused(tmp_path: Path) -> None:
    save_source(tmp_path / "w.safetensors", fresh_model(read_tiny(tmp_path)))
    recipe = read_tiny(tmp_path, preset='"nano"')
    with pytest.raises(CheckpointError, match="tiny"):
        start_model(recipe, Sources(checkpoint=tmp_path / "w.safetensors"))


def test_heads_look_at_their_neighbour(tmp_path: Path) -> None:
    encoder = fresh_model(read_tiny(tmp_path)).model.image_encoder
    for index, neighbours in ((0, _cross(1)), (1, _cross(2)), (2, _diagonal(1)), (3, _diagonal(2))):
        attention = encoder.blocks[index].attn
        side = (attention.rel_pos_h.shape[0] + 1) // 2
        heads = attention.num_heads
        queries = attention.qkv.bias[: attention.qkv.weight.shape[1]].view(heads, -1)
        middle = side // 2
        for query, (down, right) in zip(queries, neighbours, strict=True):
            scores = {
                (row, column): float(
                    query @ attention.rel_pos_h[middle - row + side - 1]
                    + query @ attention.rel_pos_w[middle - column + side - 1]
                )
                for row in range(side)
                for column in range(side)
            }
            inside = (min(middle + down, side - 1), min(middle + right, side - 1))
            assert max(scores, key=lambda cell: scores[cell]) == inside
            assert scores[inside] > sorted(scores.values())[-2]


def test_the_last_blocks_attend_by_content(tmp_path: Path) -> None:
    encoder = fresh_model(read_tiny(tmp_path)).model.image_encoder
    assert encoder.blocks[5].attn.rel_pos_h.any()
    assert not any(encoder.blocks[i].attn.rel_pos_h.any() for i in (6, 7))


def _cross(reach: int) -> list[tuple[int, int]]:
    return [(-reach, 0), (reach, 0), (0, -reach), (0, reach)]


def _diagonal(reach: int) -> list[tuple[int, int]]:
    return [(-reach, -reach), (-reach, reach), (reach, -reach), (reach, reach)]


def test_a_track_token_begins_as_large_as_a_word(tmp_path: Path) -> None:
    model = fresh_model(read_tiny(tmp_path)).model
    tokens = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    track = model.next_track_token(tokens, torch.zeros(3, 256), torch.zeros(3, dtype=torch.bool))
    words, _ = model.encode_text(torch.tensor([[5, 9, 1]]), torch.ones(1, 3, dtype=torch.int64))
    torch.testing.assert_close(track.norm(dim=-1), torch.ones(3), rtol=1e-3, atol=0)
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(1, 3), rtol=1e-3, atol=0)


def test_places_are_told_by_waves_and_the_slowest_one_orders_them() -> None:
    table = torch.zeros(1, 4, 6, 16)
    tell_places(table)
    for row in range(4):
        for column in range(6):
            for size, place, part in ((4, row, table[..., :8]), (6, column, table[..., 8:])):
                for wave in range(4):
                    angle = place / size ** (wave / 3)
                    found = part[0, row, column, wave], part[0, row, column, 4 + wave]
                    assert found == pytest.approx((math.sin(angle), math.cos(angle)), abs=1e-5)
    assert (table[0, :, 0, 3].diff() > 0).all()
    assert (table[0, 0, :, 11].diff() > 0).all()


def test_fresh_tensors_start_anew_although_a_file_has_them(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    save_source(tmp_path / "w.safetensors", fresh_model(read_tiny(tmp_path, seed="9")))
    sources = Sources(checkpoint=tmp_path / "w.safetensors")
    names = ("track_token_mlp.", "text_encoder.")
    kept = canonical_tensors(start_model(recipe, sources).model)
    tensors = canonical_tensors(
        start_model(msgspec.structs.replace(recipe, fresh=names), sources).model
    )
    initial = canonical_tensors(fresh_model(recipe).model)
    for key, value in tensors.items():
        assert torch.equal(value, (initial if key.startswith(names) else kept)[key]), key
    assert not torch.equal(kept["resizer.0.weight"], initial["resizer.0.weight"])
    wrong = msgspec.structs.replace(recipe, fresh=("track_token.",))
    with pytest.raises(
        UsageError, match=r"recipe tiny: fresh: no tensor begins with track_token\."
    ):
        start_model(wrong, sources)


def test_only_full_training_scales_what_the_decoder_gets(tmp_path: Path) -> None:
    recipe = read_tiny(tmp_path)
    plain = canonical_tensors(
        start_model(msgspec.structs.replace(recipe, mode="parameter-efficient"), Sources()).model
    )
    full = canonical_tensors(fresh_model(recipe).model)
    scales = {"dense_conv.weight": 8.0, "dense_conv.bias": 0.0}
    scales |= {f"mask_decoder.{name}.weight": 1 / 16 for name in ("mask_tokens", "iou_token")}
    first = "mask_decoder.transformer.layers.0.self_attn"
    scales |= {f"{first}.{side}_proj.weight": 16.0 for side in "qkv"}
    for name, scale in scales.items():
        torch.testing.assert_close(full[name], plain[name] * scale)
        assert plain[name].any()
    for name in ("image_encoder.pos_embed", "image_encoder.blocks.0.attn.rel_pos_h"):
        assert full[name].any()
        assert not plain[name].any()
    second = f"{first.replace('.0.', '.1.')}.q_proj.weight"
    assert torch.equal(full[second], plain[second])

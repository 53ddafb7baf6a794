"""The model of step 0: files where given, PyTorch's values elsewhere, heads that look around."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_training import fresh_model, read_tiny

from refsam_export.checkpoint import canonical_tensors, save_source
from refsam_train.start import Sources, start_model
from refsam_trt.errors import CheckpointError


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
    wanted = canonical_tensors(source.model)
    for key, value in canonical_tensors(started.model).items():
        assert torch.equal(value, wanted[key]), key


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

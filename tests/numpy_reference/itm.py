"""The Implicit Tracking Module, form `ffn` (refsam-model 7.1)."""

from __future__ import annotations

from numpy_reference.layers import Array, Weights, layer_norm, linear, relu


def next_track_token(weights: Weights, main_mask_token: Array) -> Array:
    """Return the track token [256] for the next frame from this frame's main mask token."""
    hidden = relu(linear(weights, "track_token_mlp.linear1", main_mask_token))
    update = linear(weights, "track_token_mlp.linear2", hidden)
    return layer_norm(weights, "track_token_mlp.norm", main_mask_token + update, eps=1e-5)

"""Pixel decoder and mask blocks of one frame (6)."""

import numpy as np

from referdino_twin.grounding import box_position, decoder_layer
from referdino_twin.layers import Array, Weights, conv, count, group_norm, relu


def pixel_decoder(w: Weights, m8: Array, m16: Array, m32: Array, stage0: Array) -> Array:
    """Return x16 from three maps of the memory [d, h, w] and Swin's first stage [C0, H4, W4]."""

    def lay(index: int, x: Array) -> Array:
        x = conv(w, f"pixel_decoder.lay{index}", x, padding=1)
        return relu(group_norm(w, f"pixel_decoder.gn{index}", x, 8))

    x = lay(2, lay(1, m32))
    x = lay(3, _with_coarse(conv(w, "pixel_decoder.adapter1", m16), x))
    x = lay(4, _with_coarse(conv(w, "pixel_decoder.adapter2", m8), x))
    return lay(5, _with_coarse(conv(w, "pixel_decoder.adapter3", stage0), x))


def _with_coarse(fine: Array, coarse: Array) -> Array:
    rows = np.arange(fine.shape[1]) * coarse.shape[1] // fine.shape[1]
    columns = np.arange(fine.shape[2]) * coarse.shape[2] // fine.shape[2]
    return fine + coarse[:, rows][:, :, columns]


def mask_logits(w: Weights, hs_v: Array, ref: Array, text_mem: Array, x16: Array) -> Array:
    """Return [slots, H4, W4]."""
    mask_map = conv(w, "pixel_decoder.out_lay", x16, padding=1)
    d, height, width = mask_map.shape
    cells = mask_map.reshape(d, -1).T
    x, position = hs_v, box_position(w, ref)
    for block in range(count(w, "mask_decoder.")):
        name = f"mask_decoder.{block}"
        x, _ = decoder_layer(w, name, x, position, ref, text_mem, cells, [(height, width)])
    return (x @ cells.T).reshape(-1, height, width)

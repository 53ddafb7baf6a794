"""The grounding transformer on one frame and one expression (4)."""

from dataclasses import dataclass

import numpy as np

from referdino_twin.layers import (
    HEADS,
    Array,
    Sizes,
    Weights,
    count,
    deformable,
    feed_forward,
    inv_sigmoid,
    layer_norm,
    linear,
    mha,
    mlp,
    sigmoid,
    sine,
    softmax,
)

_ENCODER, _DECODER = "transformer.encoder", "transformer.decoder"


@dataclass(frozen=True)
class TwinGrounding:
    hs: Array
    ref: Array
    text_mem: Array
    memory: Array
    ids: list[Array]  # proposals, then what each layer keeps
    proposal_score: Array
    pruning_scores: list[Array]


def ground(
    w: Weights, src: list[Array], text: Array, position_ids: Array, self_mask: Array
) -> TwinGrounding:
    """Ground one expression; `src` are the four maps [d, h, w]."""
    sizes = [(x.shape[1], x.shape[2]) for x in src]
    memory, text_mem = _encode(w, src, sizes, text, position_ids, self_mask)
    proposals, score, reference = _choose(w, memory, text_mem, sizes)
    x = w["transformer.tgt_embed.weight"]
    ids, pruning_scores = [proposals], []
    layers = count(w, f"{_DECODER}.layers.")
    for layer in range(layers):
        position = box_position(w, reference)
        name = f"{_DECODER}.layers.{layer}"
        o, a = decoder_layer(w, name, x, position, reference, text_mem, memory, sizes)
        received = np.array([sum(a[i, j] for i in range(len(a)) if i != j) for j in range(len(a))])
        g = (softmax(received, 0) + softmax(class_score(o, text_mem), 0)) / 2
        kept = np.argsort(-g, kind="stable")[: -(-len(g) // 2)]
        ids.append(kept)
        pruning_scores.append(g)
        x, reference = o[kept], reference[kept]
        if layer < layers - 1:
            reference = refine(w, x, reference)
    hs = layer_norm(w, f"{_DECODER}.norm", x)
    return TwinGrounding(hs, reference, text_mem, memory, ids, score, pruning_scores)


def class_score(x: Array, text_mem: Array) -> Array:
    return (x @ text_mem.T).max(1)


def box_position(w: Weights, boxes: Array) -> Array:
    half = w["transformer.level_embed"].shape[1] // 2
    cx, cy, width, height = boxes.T
    code = np.concatenate([sine(value, half, 1e4) for value in (cy, cx, width, height)], 1)
    return mlp(w, f"{_DECODER}.ref_point_head", code, 2)


def refine(w: Weights, x: Array, boxes: Array) -> Array:
    return sigmoid(mlp(w, f"{_DECODER}.bbox_embed.0", x, 3) + inv_sigmoid(boxes))


def decoder_layer(
    w: Weights,
    name: str,
    x: Array,
    position: Array,
    reference: Array,
    text: Array,
    memory: Array,
    sizes: Sizes,
) -> tuple[Array, Array]:
    attended, a = mha(w, f"{name}.self_attn", x + position, x + position, x)
    x = layer_norm(w, f"{name}.norm2", x + attended)
    x = layer_norm(
        w, f"{name}.catext_norm", x + mha(w, f"{name}.ca_text", x + position, text, text)[0]
    )
    sampled = deformable(w, f"{name}.cross_attn", x + position, reference, memory, sizes)
    x = layer_norm(w, f"{name}.norm1", x + sampled)
    return layer_norm(w, f"{name}.norm3", x + feed_forward(w, name, x)), a


def _encode(
    w: Weights,
    src: list[Array],
    sizes: Sizes,
    text: Array,
    position_ids: Array,
    self_mask: Array,
) -> tuple[Array, Array]:
    image = np.concatenate([x.reshape(len(x), -1).T for x in src])
    d = image.shape[1]
    codes, centres = [], []
    for level, (height, width) in enumerate(sizes):
        for i in range(height):
            for j in range(width):
                y = sine(np.array((i + 1) / (height + 1e-6)), d // 2, 20)
                x = sine(np.array((j + 1) / (width + 1e-6)), d // 2, 20)
                codes.append(np.concatenate([y, x]) + w["transformer.level_embed"][level])
                centres.append(((j + 0.5) / width, (i + 0.5) / height))
    position, reference = np.array(codes), np.array(centres)
    text_position = sine(position_ids.astype(float), d, 1e4)
    for layer in range(count(w, f"{_ENCODER}.layers.")):
        image, text = _fuse(w, f"{_ENCODER}.fusion_layers.{layer}", image, text)
        name = f"{_ENCODER}.text_layers.{layer}"
        query = text + text_position
        attended = mha(w, f"{name}.self_attn", query, query, text, HEADS // 2, self_mask)[0]
        text = layer_norm(w, f"{name}.norm1", text + attended)
        text = layer_norm(w, f"{name}.norm2", text + feed_forward(w, name, text))
        name = f"{_ENCODER}.layers.{layer}"
        sampled = deformable(w, f"{name}.self_attn", image + position, reference, image, sizes)
        image = layer_norm(w, f"{name}.norm1", image + sampled)
        image = layer_norm(w, f"{name}.norm2", image + feed_forward(w, name, image))
    return image, text


def _fuse(w: Weights, name: str, image: Array, text: Array) -> tuple[Array, Array]:
    v, t = layer_norm(w, f"{name}.layer_norm_v", image), layer_norm(w, f"{name}.layer_norm_l", text)
    q, k = linear(w, f"{name}.attn.v_proj", v), linear(w, f"{name}.attn.l_proj", t)
    of_v = linear(w, f"{name}.attn.values_v_proj", v)
    of_t = linear(w, f"{name}.attn.values_l_proj", t)
    heads = HEADS // 2
    size = q.shape[1] // heads
    parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
    a = np.stack([q[:, part] * size**-0.5 @ k[:, part].T for part in parts])
    a = np.clip(a - a.max(), -50000, 50000)
    for_image = [softmax(a[head], 1) @ of_t[:, part] for head, part in enumerate(parts)]
    for_text = []
    for head, part in enumerate(parts):
        turned = a[head].T
        turned = np.clip(turned - turned.max(1, keepdims=True), -50000, 50000)
        for_text.append(softmax(turned, 1) @ of_v[:, part])
    image = v + w[f"{name}.gamma_v"] * linear(
        w, f"{name}.attn.out_v_proj", np.concatenate(for_image, 1)
    )
    text = t + w[f"{name}.gamma_l"] * linear(
        w, f"{name}.attn.out_l_proj", np.concatenate(for_text, 1)
    )
    return image, text


def _choose(w: Weights, memory: Array, text_mem: Array, sizes: Sizes) -> tuple[Array, Array, Array]:
    """Return the chosen cells in order, the scores of all cells, and the first references."""
    boxes = []
    for level, (height, width) in enumerate(sizes):
        side = 0.05 * 2**level
        for i in range(height):
            boxes += [((j + 0.5) / width, (i + 0.5) / height, side, side) for j in range(width)]
    p = np.array(boxes)
    valid = ((p > 0.01) & (p < 0.99)).all(1)[:, None]
    logit = np.where(valid, np.log(p / (1 - p)), np.inf)
    o = linear(w, "transformer.enc_output", np.where(valid, memory, 0.0))
    o = layer_norm(w, "transformer.enc_output_norm", o)
    score = class_score(o, text_mem)
    ids = np.argsort(-score, kind="stable")[: len(w["transformer.tgt_embed.weight"])]
    boxes = mlp(w, "transformer.enc_out_bbox_embed", o[ids], 3) + logit[ids]
    return ids, score, sigmoid(boxes)

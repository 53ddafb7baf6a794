"""Hugging Face folders of small RoBERTa and CLIP models, as transformers itself writes them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from reference_models import model
from small_tokenizers import VOCAB_SIZE, write_clip, write_roberta

from refsam_export.refsam.checkpoint import empty_model
from refsam_export.refsam.init.fill import realistic_init

NUM_TOKENS = VOCAB_SIZE + 600  # single bytes, their endings and special tokens besides the merges
SIZES = {
    "vocab_size": NUM_TOKENS,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
ROBERTA = {
    **SIZES,
    "max_position_embeddings": 66,
    "hidden_act": "gelu",
    "type_vocab_size": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
}
CLIP = {
    **SIZES,
    "max_position_embeddings": 64,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "bos_token_id": 5,
    "eos_token_id": 2,  # the published CLIPs say so too, and mean another token
    "pad_token_id": 1,
}
TEXTS = ["the red disc on the left", "the largest striped ball", "blue square moving"] * 20


@cache
def realistic_text(kind: str, act: str) -> Any:
    """Return transformers' module with realistic weights; shared, so never change it."""
    config = {"roberta": ROBERTA, "clip_text_model": CLIP}[kind] | {"hidden_act": act}
    of = empty_model(model("tiny").config, {"model_type": kind, **config})
    realistic_init(of, 0)
    return of.text_encoder


def save_roberta(folder: Path, act: str = "gelu") -> Path:
    """A masked language model: prefix, head and all; tokenizer as first published."""
    from transformers import RobertaConfig, RobertaForMaskedLM

    whole: Any = RobertaForMaskedLM(RobertaConfig(**ROBERTA | {"hidden_act": act}))
    whole.roberta.load_state_dict(realistic_text("roberta", act).state_dict())
    whole.save_pretrained(folder)
    write_roberta(folder, TEXTS)
    return folder


def save_clip(folder: Path, act: str = "quick_gelu") -> Path:
    """A whole CLIP, image half and projections included."""
    from transformers import CLIPConfig, CLIPModel

    vision = {key: SIZES[key] for key in SIZES if key != "vocab_size"}
    vision |= {"image_size": 32, "patch_size": 16}
    text = CLIP | {"hidden_act": act}
    whole: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    inner = getattr(whole.text_model, "text_model", whole.text_model)
    inner.load_state_dict(realistic_text("clip_text_model", act).state_dict())
    whole.save_pretrained(folder)
    write_clip(folder, TEXTS)
    return folder


def change_config(folder: Path, **changes: Any) -> Path:
    """Change `config.json`, inside of `text_config` where there is one."""
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content.get("text_config", content).update(changes)
    path.write_text(json.dumps(content))
    return folder

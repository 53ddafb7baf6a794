"""The published sizes of T5, for random weights where no file of them is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refsam_trt.errors import UsageError

T5_PRESETS: dict[str, dict[str, int]] = {
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16},
    "t5-3b": {"d_model": 1024, "d_kv": 128, "d_ff": 16384, "num_layers": 24, "num_heads": 32},
}
_VOCAB_SIZE = 32128


def t5_config(preset: str) -> dict[str, Any]:
    """Return the configuration of a published size, as in a Hugging Face `config.json`."""
    return {
        "model_type": "t5",
        "vocab_size": _VOCAB_SIZE,
        "feed_forward_proj": "relu",
        "dropout_rate": 0.0,
        **T5_PRESETS[preset],
    }


def t5_preset_of(config: dict[str, Any]) -> str | None:
    """Return the published size that has this configuration, None if it is of another one."""
    return next((name for name in T5_PRESETS if t5_config(name) == config), None)


def random_preset(text_encoder: Path | None, random_init: int | None) -> str | None:
    """Return the published size that `--text-encoder` names instead of a folder, if it does.

    Raises:
        UsageError: it does, and there is nothing to fill it with.
    """
    name = "" if text_encoder is None else str(text_encoder)
    if name not in T5_PRESETS or Path(name).is_dir():
        return None
    if random_init is None:
        raise UsageError(
            f"{name}: no such folder; give the Hugging Face folder of that T5, or, for tests of "
            "speed and parity, random weights of its size with --random-init SEED"
        )
    return name

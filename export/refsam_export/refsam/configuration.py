"""Derive the configuration from files and options; a contradiction is an error (8.5).

A configuration begins as the preset's. Then come the fields that were asked for, then the facts:
fields that a file fixes. A fact that differs from what was asked for is an error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from refsam_export.refsam.model.config import ModelConfig
from refsam_trt.errors import CheckpointError

Configuration = Literal["paper", "released"]
Ablation = Literal["no-dense-attention", "dense-origin", "no-word-tokens"]
Casing = Literal["lower", "keep"]
Asked: TypeAlias = Mapping[str, Any]
"""Fields of `ModelConfig` that a user asks for."""

CONFIGURATIONS: Mapping[Configuration, Asked] = {
    "paper": {"hda_levels": 4, "itm": "ffn", "first_resize": "rounded"},
    "released": {
        "hda_levels": 1,
        "itm": "qim",
        "first_resize": "truncated",
        "adapter_act": "gelu",
    },
}
"""refsam-model's table of configurations: the fields in which the two differ. `paper` leaves the
activation of the adapters open, because official files of the paper's model use GELU all the same.
The two attention masks of the text (`text_attention_mask`) are one: nothing is padded at run time.
What only one of the released scripts does is asked for by itself: its Ref-DAVIS script keeps the
case of expressions and has no 360p step (`lowercase`, `downscale_short_side`). Track tokens shared
by annotators are no part of a model: `refsam-run --track-state-scope`.
"""

ABLATIONS: Mapping[Ablation, Asked] = {
    "no-dense-attention": {"hda_levels": 0},
    "dense-origin": {"hda_levels": 0, "dense_origin": True},
    "no-word-tokens": {"word_tokens": False},
}
"""Switches of the released scripts (refsam-model 5.1)."""

_FREE = frozenset({"mask_select", "first_resize", "lowercase", "downscale_short_side"})
"""Fields that no weight depends on: asking for another value than a file names is no error."""

OFFICIAL_ACT = "gelu"
ASSUMED_ACT = (
    "part files do not tell the activation of the adapters; GELU is taken, as in the official "
    "code, where the paper says ReLU (--adapter-act relu)"
)


@dataclass(frozen=True)
class Facts:
    """Fields of the configuration that one file fixes."""

    name: str
    fields: Mapping[str, Any]


def asked_for(
    configuration: Configuration | None = None,
    adapter_act: str | None = None,
    mask_select: str | None = None,
    ablations: Iterable[Ablation] = (),
    casing: Casing | None = None,
    short_side: int | Literal["none"] | None = None,
) -> dict[str, Any]:
    """Return the fields that these options ask for, the special ones over the general one.

    None asks for nothing; `short_side` "none" asks for frames that are not shrunk first.
    """
    asked = dict(CONFIGURATIONS[configuration]) if configuration else {}
    for ablation in ablations:
        asked |= ABLATIONS[ablation]
    options = {"adapter_act": adapter_act, "mask_select": mask_select}
    asked |= {name: value for name, value in options.items() if value is not None}
    if casing is not None:
        asked["lowercase"] = casing == "lower"
    if short_side is not None:
        asked["downscale_short_side"] = None if short_side == "none" else short_side
    return asked


def derive(base: ModelConfig, asked: Asked, facts: Sequence[Facts]) -> ModelConfig:
    """Return the configuration of a model made of files.

    Raises:
        CheckpointError: a file fixes another value than was asked for, or two files do.
        UsageError: fields that make no model.
    """
    settled = {name: (value, "asked for") for name, value in asked.items()}
    fields = {}
    for fact in facts:
        for name, value in fact.fields.items():
            expected, by = settled.get(name, (value, ""))
            if expected != value and name not in _FREE:
                raise CheckpointError(
                    f"{fact.name}: is for {name} = {value!r}, but {expected!r} is {by}; leave out "
                    "the option or the file that says otherwise (--configuration, --adapter-act, "
                    "--ablation)"
                )
            fields[name] = value
            settled.setdefault(name, (value, f"what {fact.name} is for"))
    return dataclasses.replace(base, **{**fields, **asked})


def hda_facts(files: Mapping[str, str]) -> list[Facts]:
    """Return what the HDA parts among `files` (kind -> name) say of the number of levels.

    Raises:
        CheckpointError: only one of `fpn_conv` and `dense_conv2`.
    """
    has_fpn, has_dense = "fpn_conv" in files, "dense_conv2" in files
    if has_fpn != has_dense:
        present, lacks = ("fpn_conv", "dense_conv2") if has_fpn else ("dense_conv2", "fpn_conv")
        raise CheckpointError(
            f"{files[present]}: {present} without {lacks}; a model with four levels of dense "
            "attention has both, one with a single level neither: give both files or leave this "
            "one out"
        )
    if has_fpn:
        return [Facts(files["fpn_conv"], {"hda_levels": 4})]
    if "dense_conv" in files:
        return [Facts(files["dense_conv"], {"hda_levels": 1})]
    return []

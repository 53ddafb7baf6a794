"""SAM's own modules, unchanged, from the `segment-anything` distribution.

Its package `__init__` imports torchvision, which we never need and which has no build matching
every torch. The model code below it does not: so the sub-package is imported without running that file.
A later `import segment_anything` elsewhere runs as usual and finds the very same classes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from refsam_trt.errors import MissingExtraError

_PACKAGE = "segment_anything"


def _import_submodule(name: str) -> ModuleType:
    if _PACKAGE in sys.modules:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise MissingExtraError("export", "The RefSAM reference model", "segment-anything missing")
    stand_in = ModuleType(_PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = stand_in
    try:
        return importlib.import_module(f"{_PACKAGE}.{name}")
    finally:
        del sys.modules[_PACKAGE]


_image_encoder = _import_submodule("modeling.image_encoder")
_modeling = _import_submodule("modeling")
_transformer = _import_submodule("modeling.transformer")
_common = _import_submodule("modeling.common")

Block = _image_encoder.Block
ImageAttention = _image_encoder.Attention
ImageEncoderViT = _image_encoder.ImageEncoderViT
get_rel_pos = _image_encoder.get_rel_pos
window_partition = _image_encoder.window_partition
window_unpartition = _image_encoder.window_unpartition
LayerNorm2d = _common.LayerNorm2d
MaskDecoder = _modeling.MaskDecoder
PromptEncoder = _modeling.PromptEncoder
TwoWayTransformer = _modeling.TwoWayTransformer
DecoderAttention = _transformer.Attention

"""SAM's own modules, unchanged, from the `segment-anything` distribution.

Its package `__init__` imports torchvision, which we never need and which has no build matching
every torch. The model code below it does not: it is imported under a stand-in for the package, as a
private copy, so that `import segment_anything` elsewhere behaves as if we had never been here.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from refsam_trt.errors import MissingExtraError

_PACKAGE = "segment_anything"
_MODULES = ("modeling.image_encoder", "modeling", "modeling.common")


def _private_copies() -> list[ModuleType]:
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise MissingExtraError("export", "The RefSAM reference model", "segment-anything missing")
    before = _take_out()
    stand_in = ModuleType(_PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = stand_in
    try:
        return [importlib.import_module(f"{_PACKAGE}.{name}") for name in _MODULES]
    finally:
        _take_out()
        sys.modules.update(before)


def _take_out() -> dict[str, ModuleType]:
    names = [n for n in sys.modules if n == _PACKAGE or n.startswith(f"{_PACKAGE}.")]
    return {name: sys.modules.pop(name) for name in names}


_image_encoder, _modeling, _common = _private_copies()

Block = _image_encoder.Block
ImageEncoderViT = _image_encoder.ImageEncoderViT
add_decomposed_rel_pos = _image_encoder.add_decomposed_rel_pos
get_rel_pos = _image_encoder.get_rel_pos
window_partition = _image_encoder.window_partition
window_unpartition = _image_encoder.window_unpartition
LayerNorm2d = _common.LayerNorm2d
MaskDecoder = _modeling.MaskDecoder
PromptEncoder = _modeling.PromptEncoder
TwoWayTransformer = _modeling.TwoWayTransformer

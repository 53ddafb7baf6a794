"""Synthetic referring videos: made on the fly, deterministic in seed and index, of known meaning.

A scene is drawn for a slice (`compose`, `cast`, `paths`, `twins`). What names its objects beyond
doubt is found (`naming`, `meaning`) and put into words (`grammar`). Then it is painted (`render`).
"""

from refsam_bench.synthetic.compose import SLICES, Slice
from refsam_bench.synthetic.language.grammar import vocabulary
from refsam_bench.synthetic.video import (
    EVALUATE_SEED,
    TUNE_SEED,
    Expression,
    SyntheticVideo,
    generate,
    split_of,
)
from refsam_bench.synthetic.write import write_ref_davis

__all__ = [
    "EVALUATE_SEED",
    "SLICES",
    "TUNE_SEED",
    "Expression",
    "Slice",
    "SyntheticVideo",
    "generate",
    "split_of",
    "vocabulary",
    "write_ref_davis",
]

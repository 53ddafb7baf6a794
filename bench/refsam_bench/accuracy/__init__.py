"""Accuracy against annotations: J and F, the DAVIS protocols, Ref-DAVIS17, oIoU, submissions."""

from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.protocols import (
    PROTOCOLS,
    Progress,
    Protocol,
    score_clip,
    score_results,
)
from refsam_bench.accuracy.ref_davis import (
    RefDavisScores,
    RefDavisVideo,
    load_ref_davis,
    score_ref_davis,
)
from refsam_bench.accuracy.referring_image import ReferringImageScores, referring_image_scores
from refsam_bench.accuracy.scores import (
    Figures,
    ObjectScores,
    Scores,
    SequenceScores,
    mean_figures,
    sequence_scores,
    total_scores,
)
from refsam_bench.accuracy.submissions import write_mevis_zip, write_ref_youtube_vos_zip

__all__ = [
    "PROTOCOLS",
    "Figures",
    "ObjectScores",
    "Progress",
    "Protocol",
    "RefDavisScores",
    "RefDavisVideo",
    "ReferringImageScores",
    "Scores",
    "SequenceScores",
    "load_ref_davis",
    "mean_figures",
    "read_label_map",
    "referring_image_scores",
    "score_clip",
    "score_ref_davis",
    "score_results",
    "sequence_scores",
    "total_scores",
    "write_mevis_zip",
    "write_ref_youtube_vos_zip",
]

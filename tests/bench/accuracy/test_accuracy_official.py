"""Every figure of the official DAVIS-2017 code for real predictions of somebody else."""

import json

import pytest
import shared_data

from refsam_bench.accuracy.protocols import score_results
from refsam_bench.accuracy.scores import Scores

TOLERANCE = 1e-6  # demanded; measured is 0


def official_form(scores: Scores) -> dict:
    """Return scores in the form of the official file."""

    def both(part):
        return {
            "J": {"mean": part.j, "recall": part.j_recall, "decay": part.j_decay},
            "F": {"mean": part.f, "recall": part.f_recall, "decay": part.f_decay},
        }

    objects = {o.name: both(o) for sequence in scores.sequences for o in sequence.objects}
    return {**both(scores), "J&F": scores.j_and_f, "objects": objects}


def flat(tree: dict, prefix: str = "") -> dict[str, float]:
    leaves = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves.update(flat(value, f"{prefix}{key}/"))
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


@pytest.mark.parametrize("protocol", ["davis-semi", "davis-unsup"])
def test_official_figures_are_reproduced(protocol):
    root = shared_data.path("ref-davis-mini")
    official = json.loads((root / "results" / "osvos_official.json").read_text())
    scores = score_results(root / "results" / "osvos", root / "valid" / "Annotations", protocol)
    expected = flat(official["protocols"][protocol])
    found = flat(official_form(scores))
    assert len(expected) == 37
    assert found.keys() == expected.keys()
    assert found == pytest.approx(expected, abs=TOLERANCE, rel=0)
    assert scores.unscored_sequences == ("dogs-jump", "schoolgirls")

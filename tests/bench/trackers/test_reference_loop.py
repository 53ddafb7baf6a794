"""The slow side of the speed benchmark: the same masks, with everything computed again."""

import dataclasses

import numpy as np
import pytest
from reference_models import loaded, variant

from refsam_bench.trackers.reference import ReferenceTracker
from refsam_bench.trackers.reference_loop import ReferenceLoop
from refsam_export.parity.inputs import moving_frames
from refsam_export.refsam.model.refsam import RefSam

FRAMES = moving_frames(2, 3, (48, 64))
TEXTS = ["the RED  disc", "blue square"]


def test_masks_are_those_of_the_reference() -> None:
    loop = ReferenceLoop(loaded("tiny"))
    for frame, expected in zip(
        FRAMES, ReferenceTracker(loaded("tiny")).track(FRAMES, TEXTS), strict=True
    ):
        np.testing.assert_array_equal(loop.step(frame, TEXTS), expected)


def test_everything_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str) -> None:
        method = getattr(RefSam, name)

        def call(self: RefSam, *arguments: object, **options: object) -> object:
            calls.append(name)
            return method(self, *arguments, **options)

        monkeypatch.setattr(RefSam, name, call)

    for name in ("encode_image", "encode_text", "step"):
        counted(name)
    loop = ReferenceLoop(loaded("tiny"))
    for frame in FRAMES:
        loop.step(frame, TEXTS)
    assert {name: calls.count(name) for name in calls} == {
        "encode_image": 4,
        "encode_text": 4,
        "step": 4,
    }


@pytest.mark.parametrize("lowercase", [True, False])
def test_expressions_are_cleaned_as_configured(lowercase: bool) -> None:
    of = dataclasses.replace(loaded("tiny"), model=variant("tiny", lowercase=lowercase))
    (shouted,) = ReferenceLoop(of).step(FRAMES[0], ["the RED  disc"])
    (said,) = ReferenceLoop(of).step(FRAMES[0], ["the red disc"])
    assert np.array_equal(shouted, said) is lowercase

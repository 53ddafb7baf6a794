"""The one chain in PyTorch: expressions that come and go, memory, what text becomes, observers."""

import dataclasses

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from reference_models import loaded, variant

from refsam_export.parity.inputs import EXPRESSIONS, moving_frames
from refsam_export.refsam.programs import Tensors, split_graphs
from refsam_export.refsam.reference import ReferenceModel, ReferenceSession
from refsam_trt.errors import ExpressionError, UsageError
from refsam_trt.result.result import FrameResults

FRAMES = moving_frames(4, 3, (48, 64))
FIRST, SECOND, LATE = EXPRESSIONS
BATCHING = 1e-5
"""Padding and batching change the order in which sums are rounded."""


@pytest.fixture(scope="module")
def alone() -> ReferenceModel:
    return ReferenceModel.of(loaded("tiny"))


@pytest.fixture(scope="module")
def together() -> ReferenceModel:
    of = loaded("tiny")
    return ReferenceModel.of(of, split_graphs(of.model, "baseline"), together=True)


def logits(results: FrameResults) -> dict[str, np.ndarray]:
    return {result.text: result.low_res_logits for result in results}


def follow(model: ReferenceModel, text: str, first: int = 0) -> list[np.ndarray]:
    """One expression alone in a video."""
    with model.open_video() as video:
        video.add_expression(text)
        return [video.step(frame)[0].low_res_logits for frame in FRAMES[first:]]


def largest_difference(values: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(values - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize(("name", "bound"), [("alone", 0.0), ("together", BATCHING)])
def test_expressions_do_not_know_of_each_other(
    name: str, bound: float, alone: ReferenceModel, request: pytest.FixtureRequest
) -> None:
    """One joins late, one leaves; each is what it is in a video of its own."""
    video = request.getfixturevalue(name).open_video()
    ids = {text: video.add_expression(text) for text in (FIRST, SECOND)}
    steps = []
    for index, frame in enumerate(FRAMES):
        if index == 2:
            ids[LATE] = video.add_expression(LATE)
        if index == 3:
            video.remove_expression(ids[FIRST])
        results = video.step(frame)
        assert [result.expression_id for result in results] == list(video.expressions)
        assert results.frame_index == index
        steps.append(logits(results))
    assert [list(step) for step in steps] == [
        [FIRST, SECOND],
        [FIRST, SECOND],
        [FIRST, SECOND, LATE],
        [SECOND, LATE],
    ]
    for text, first in ((FIRST, 0), (SECOND, 0), (LATE, 2)):
        found = [step[text] for step in steps[first:] if text in step]
        for values, expected in zip(found, follow(alone, text, first), strict=False):
            assert largest_difference(values, expected) <= bound


@pytest.mark.parametrize("name", ["alone", "together"])
def test_a_forgotten_track_begins_anew(name: str, request: pytest.FixtureRequest) -> None:
    video: ReferenceSession = request.getfixturevalue(name).open_video()
    ids = [video.add_expression(text) for text in (FIRST, SECOND)]
    assert video.track_token(ids[0]) is None
    first = logits(video.step(FRAMES[0]))
    tokens = [video.track_token(id_) for id_ in ids]
    assert [token.shape for token in tokens if token is not None] == [(256,)] * 2
    video.reset_track(ids[0])
    assert video.track_token(ids[0]) is None
    assert_array_equal(video.track_token(ids[1]), tokens[1])
    again = logits(video.step(FRAMES[0]))
    assert_array_equal(again[FIRST], first[FIRST])
    assert largest_difference(again[SECOND], first[SECOND]) > 100 * BATCHING


def test_every_run_of_a_graph_is_observed(together: ReferenceModel) -> None:
    runs: list[tuple[int, str, int]] = []

    def note(frame: int, graph: str, tensors: Tensors, outputs: Tensors) -> None:
        spec = together.graphs.specs[graph]
        assert {tensor.name for tensor in spec.inputs} <= tensors.keys()
        assert [tensor.name for tensor in spec.outputs] == list(outputs)
        runs.append((frame, graph, len(next(iter(outputs.values())))))

    with together.open_video(observe=note) as video:
        for index, texts in enumerate(([FIRST, SECOND], [], [LATE])):
            for text in texts:
                video.add_expression(text)
            video.step(FRAMES[index])
    image, text, step = "image_encoder", "text_encoder", "decoder_step"
    assert runs == [
        *((0, image, 1), (0, text, 2), (0, step, 2)),
        *((1, image, 1), (1, step, 2)),
        *((2, image, 1), (2, text, 3), (2, step, 3)),
    ]


def test_text_that_is_not_kept_is_embedded_in_every_frame(alone: ReferenceModel) -> None:
    runs: list[tuple[int, str]] = []
    with alone.open_video(
        keeps_text=False, observe=lambda f, graph, *_: runs.append((f, graph))
    ) as v:
        v.add_expression(FIRST)
        found = [v.step(frame)[0].low_res_logits for frame in FRAMES[:2]]
    assert [frame for frame, graph in runs if graph == "text_encoder"] == [0, 1]
    assert_array_equal(found, follow(alone, FIRST)[:2])


@pytest.mark.parametrize(("lowercase", "text"), [(True, "the red disc"), (False, "the Red disc")])
def test_case_is_kept_where_the_configuration_says_so(lowercase: bool, text: str) -> None:
    of = dataclasses.replace(loaded("tiny"), model=variant("tiny", lowercase=lowercase))
    model = ReferenceModel.of(of)
    with model.open_video() as video:
        video.add_expression(" the Red  disc ")
        assert list(video.expressions.values()) == [text]
    assert model.token_ids("the Red disc") == of.tokenizer.encode(text).ids


def test_what_is_refused(alone: ReferenceModel) -> None:
    video = alone.open_video()
    with pytest.raises(ExpressionError, match="the expression is empty"):
        video.add_expression("  ")
    with pytest.raises(ExpressionError, match="at most 64 are accepted"):
        video.add_expression("word " * 64)
    assert video.expressions == {}
    for call in (video.remove_expression, video.reset_track, video.track_token):
        with pytest.raises(UsageError, match="no expression has the id 7"):
            call(7)
    assert len(video.step(FRAMES[0])) == 0


def test_shorter_expressions_are_filled_up_with_the_pad_token() -> None:
    model = ReferenceModel.of(dataclasses.replace(loaded("tiny"), pad_id=5))
    inputs = model.text_inputs([[7, 8, 9], [7]])
    assert inputs["input_ids"].tolist() == [[7, 8, 9], [7, 5, 5]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]

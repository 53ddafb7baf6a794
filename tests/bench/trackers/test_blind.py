"""Answers without an expression, against plain counting."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from refsam_bench.commands.accuracy import accuracy
from refsam_bench.datasets.synthetic import SyntheticRequest, score_blind
from refsam_bench.synthetic import generate
from refsam_bench.trackers.blind import blind_masks
from refsam_trt.errors import UsageError

SEED = 900_000


@pytest.mark.parametrize("index", range(3))
def test_each_answer_is_what_its_name_says(index):
    video = generate(SEED, index, slice="size", num_frames=3)
    first = video.label_map[0]
    numbers = range(1, len(video.scene.objects) + 1)
    sizes = {n: int((first == n).sum()) for n in numbers}
    largest = max(sizes, key=lambda n: sizes[n])
    away = {}
    for n in numbers:
        rows, columns = np.nonzero(first == n)
        away[n] = (rows.mean() - 127.5) ** 2 + (columns.mean() - 127.5) ** 2
    central = min(away, key=lambda n: away[n])
    for blind, expected in (
        ("largest", video.mask(largest)),
        ("centre", video.mask(central)),
        ("all", video.label_map > 0),
    ):
        np.testing.assert_array_equal(np.stack(list(blind_masks(video, blind))), expected)


def test_an_unknown_answer_is_refused():
    video = generate(SEED, 0, slice="size", frame_indices=[0])
    with pytest.raises(UsageError, match="no blind answer 'red'; answers: largest, centre, all"):
        blind_masks(video, "red")


def test_blind_answers_score_low_where_the_named_object_is_another():
    request = SyntheticRequest(SEED, 4)
    ticks: list[int] = []
    scores = score_blind("largest", request, lambda: ticks.append(1))
    assert len(ticks) == 4
    for sequence in scores.sequences:
        name, index = sequence.name.split("-")
        video = generate(SEED, int(index), slice=name)
        named = video.mask(video.expressions[0].object_id)
        answer = np.stack(list(blind_masks(video, "largest")))
        is_named = np.array_equal(named, answer)
        assert (sequence.objects[0].j == 1.0) == is_named


def test_the_command_needs_no_bundle_and_refuses_one():
    arguments = ["--dataset", "synthetic", "--blind", "all", "--num-videos", "2", "--json"]
    ended = CliRunner().invoke(accuracy, arguments, catch_exceptions=False)
    figures = json.loads(ended.stdout)
    assert figures["blind"] == "all"
    assert 0.0 < figures["j_and_f"] < 0.5
    with pytest.raises(UsageError, match="--blind needs --dataset synthetic, and goes without"):
        CliRunner().invoke(accuracy, ["--blind", "all", "--bundle", "x"], catch_exceptions=False)

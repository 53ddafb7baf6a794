"""What the host computes for ReferDINO: blocks of text, sizes, the tracker, the choice of slots."""

import numpy as np
import pytest
from referdino_twin import positions_and_mask, track
from scipy.optimize import linear_sum_assignment

from refsam_trt.errors import BackendError
from refsam_trt.families.referdino.blocks import sentence, text_blocks
from refsam_trt.families.referdino.frame import grid_sizes, network_size, num_cells
from refsam_trt.families.referdino.matching import SlotTracker, minimum_assignment
from refsam_trt.families.referdino.selection import best_slot, label_map, slots_above, union_mask

CLS, SEP, STOP, QUESTION, COMMA, WORD = 101, 102, 1012, 1029, 1010, 2000
SPECIAL = (CLS, SEP, STOP, QUESTION)


def test_an_expression_ends_with_one_full_stop():
    assert sentence("a dog") == "a dog."
    assert sentence("a dog.") == "a dog."
    assert sentence("which is left?") == "which is left?."


def test_blocks_of_one_sentence():
    positions, mask = text_blocks(np.array([CLS, WORD, COMMA, WORD, STOP, SEP]), SPECIAL)
    assert positions.tolist() == [0, 0, 1, 2, 3, 0]  # the comma ends nothing
    expected = np.eye(6, dtype=bool)
    expected[1:5, 1:5] = True
    assert np.array_equal(mask, expected)


def test_blocks_do_not_see_each_other():
    ids = np.array([CLS, WORD, QUESTION, WORD, WORD, STOP, SEP])
    positions, mask = text_blocks(ids, SPECIAL)
    assert positions.tolist() == [0, 0, 1, 0, 1, 2, 0]
    assert mask[1, 2]
    assert not mask[2, 3]
    assert not mask[0, 1]


def test_random_ids_and_padding():
    random = np.random.default_rng(0)
    for _ in range(200):
        inner = random.choice([STOP, QUESTION, COMMA, WORD, SEP], random.integers(1, 12))
        ids = np.concatenate(([CLS], inner, [SEP]))
        for tokens in (ids, np.concatenate((ids, [0, 0]))):
            for ours, twin in zip(
                text_blocks(tokens, SPECIAL), positions_and_mask(tokens, SPECIAL), strict=True
            ):
                assert np.array_equal(ours, twin)


@pytest.mark.parametrize(
    ("frame", "network"),
    [
        ((720, 1280), (360, 640)),
        ((480, 854), (360, 640)),
        ((854, 480), (640, 360)),
        ((240, 320), (360, 480)),
        ((360, 640), (360, 640)),
        ((500, 500), (360, 360)),
    ],
)
def test_the_shorter_side_decides(frame: tuple[int, int], network: tuple[int, int]):
    assert network_size(*frame) == network


def test_grids():
    assert grid_sizes(360, 640) == [(90, 160), (45, 80), (23, 40), (12, 20), (6, 10)]
    assert num_cells(360, 640) == 4820
    assert num_cells(360, 480) == 3618
    assert num_cells(360, 360) == 2734
    assert grid_sizes(92, 150)[-1] == (2, 3)


def test_assignment_is_the_cheapest():
    random = np.random.default_rng(1)
    for size in (1, 2, 3, 8, 15):
        for _ in range(40):
            cost = random.normal(size=(size, size))
            assert np.array_equal(minimum_assignment(cost), linear_sum_assignment(cost)[1])
            ties = random.integers(0, 4, (size, size)).astype(float)
            ours = minimum_assignment(ties)
            assert sorted(ours) == list(range(size))
            rows = np.arange(size)
            assert ties[rows, ours].sum() == ties[linear_sum_assignment(ties)].sum()


def clip(num_frames: int, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Return hs and text_mem: the same objects in another order in each frame, and noise."""
    random = np.random.default_rng(2)
    objects = random.normal(size=(15, 32))
    hs = np.stack([objects[random.permutation(15)] for _ in range(num_frames)])
    hs += random.normal(size=hs.shape)
    return hs.astype(dtype), random.normal(size=(num_frames, 7, 32)).astype(dtype)


@pytest.mark.parametrize(("dtype", "bound"), [(np.float64, 1e-12), (np.float32, 1e-5)])
def test_tracker(dtype: type, bound: float):
    hs, text_mem = clip(12, dtype)
    tracker, mask = SlotTracker(0.1), np.ones(7, bool)
    permutations = [tracker.step(h, text, mask) for h, text in zip(hs, text_mem, strict=True)]
    expected, memory, _ = track(hs.astype(np.float64), text_mem.astype(np.float64))
    assert np.array_equal(permutations, expected)
    assert tracker.memory is not None
    assert tracker.memory.dtype == dtype
    assert np.abs(tracker.memory - memory).max() < bound
    assert any((permutation != np.arange(15)).any() for permutation in permutations)


def test_padding_does_not_count_in_the_tracker():
    hs, text_mem = clip(2)
    padded = np.concatenate((text_mem, 100 + text_mem[:, :2]), axis=1)
    alone, beside = SlotTracker(0.1), SlotTracker(0.1)
    for h, text, longer in zip(hs, text_mem, padded, strict=True):
        alone.step(h, text, np.ones(7, bool))
        beside.step(h, longer, np.arange(9) < 7)
    assert alone.memory is not None
    assert np.array_equal(alone.memory, beside.memory)


def test_slots_that_fit_equally_keep_the_memory():
    """The official code divides by zero here."""
    hs, text_mem = clip(2)
    tracker = SlotTracker(0.1)
    for h, text in zip(hs, 0 * text_mem, strict=True):
        tracker.step(h, text, np.ones(7, bool))
    assert np.array_equal(tracker.memory, hs[0])


def test_the_memory_is_the_trackers_own():
    hs, text_mem = clip(1)
    tracker = SlotTracker(0.1)
    tracker.step(hs[0], text_mem[0], np.ones(7, bool))
    assert tracker.memory is not hs[0]
    assert not np.shares_memory(tracker.memory, hs)


def test_slots():
    score = np.array([[0.1, 0.2, 0.9, 0.3], [0.1, 0.2, 0.1, 0.3]])
    assert best_slot(score) == 2
    assert slots_above(score).tolist() == [2, 3]  # a mean of 0.2 is not above 0.2
    assert slots_above(score, 0.4).tolist() == [2]
    assert slots_above(score, 0.8).tolist() == [2]  # none: the best


def test_union_and_labels():
    logits = np.array([[[-1.0, 2.0, 0.0, -3.0]], [[-2.0, 2.0, -1.0, 0.5]]])
    assert union_mask(logits).tolist() == [[False, True, False, True]]
    labels = label_map(logits)
    assert labels.tolist() == [[0, 1, 1, 2]]  # 0 is inside here; the first of equals wins
    assert labels.dtype == np.uint8


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["hs", "text_mem"])
def test_a_graph_that_overflowed_is_refused_and_remembers_nothing(where: str, value: float):
    """No assignment of such objects means anything; padding may hold what it likes."""
    tracker, random = SlotTracker(0.5), np.random.default_rng(0)
    good = {"hs": random.normal(size=(4, 8)), "text_mem": random.normal(size=(3, 8))}
    mask = np.array([True, True, False])
    tracker.step(**good, token_mask=mask)
    before = tracker.memory
    bad = {**good, where: good[where].copy()}
    bad[where][1, 2] = value
    with pytest.raises(BackendError, match=r"values that are not finite.*variant in fp32"):
        tracker.step(**bad, token_mask=mask)
    assert tracker.memory is before
    good["text_mem"][2] = value
    assert tracker.step(**good, token_mask=mask).tolist() == [0, 1, 2, 3]

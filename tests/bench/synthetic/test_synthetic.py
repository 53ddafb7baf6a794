"""Synthetic videos: the same bytes everywhere, one object per expression, no blind guessing."""

import hashlib
import itertools
import math

import numpy as np
import pytest

from refsam_bench.accuracy.metrics import outline_agreement, outline_of, region_similarity
from refsam_bench.synthetic import SLICES, generate, split_of, vocabulary
from refsam_bench.synthetic.language.meaning import CLIP_TIMES, MEASURES, fits
from refsam_bench.synthetic.language.naming import has_distractors
from refsam_bench.synthetic.shapes import OUTLINES, REACH
from refsam_trt.errors import UsageError

SMALL_HW = (64, 64)

# SHA-256 over frames, label maps and texts. A change here changes every figure that was measured on
# synthetic videos: all of them must be measured again.
DIGESTS = {
    (900_000, 0, "attribute"): "4ce5baa1f70db5efe6f763e52fc65ad39b0ccf41ca24626dd58d82bd0257bf6c",
    (17, 3, "track"): "7e07240f33c327a9319ab106748162c7f3f3af4885cfb4894a35e976e2dbd16a",
}
# Of the first and the last frame of video 7 of seed 900000, 64x64.
SMALL_DIGESTS = {
    "size": "54386ef0931b29d0c8bbedbaae260f6a9cd3d9aadca0f5ec980d5f907315c8d1",
    "position": "f75196108ea2f3a09430e6ee0fec7f0154554466e7f8a9ca1ecb258509dfb1d5",
    "relation": "b1101d93634e8fdd3cf7f84b34cf30bb7d180c705058d96fa290b8f406df1a2a",
    "motion": "031a18bb5585f3208d4279b7507d16a87109f470f28f9c1ff905536c4d046b25",
}


def visible_px(video):
    """Pixels of each object that are visible, int64 [T, K]."""
    num_labels = len(video.scene.objects) + 1
    counts = [np.bincount(labels.ravel(), minlength=num_labels) for labels in video.label_map]
    return np.stack(counts)[:, 1:]


def digest_of(video):
    texts = "\n".join(f"{e.object_id} {e.text}" for e in video.expressions)
    return hashlib.sha256(
        video.frames.tobytes() + video.label_map.tobytes() + texts.encode()
    ).hexdigest()


def videos(name, count, **options):
    for index in range(count):
        yield generate(900_001, index, slice=name, **options)


@pytest.mark.parametrize("key", DIGESTS)
def test_same_bytes_on_every_machine(key):
    seed, index, name = key
    assert digest_of(generate(seed, index, slice=name)) == DIGESTS[key]


@pytest.mark.parametrize("name", SMALL_DIGESTS)
def test_same_bytes_of_every_slice(name):
    video = generate(900_000, 7, slice=name, frame_indices=(0, 15), size_hw=SMALL_HW)
    assert digest_of(video) == SMALL_DIGESTS[name]


def test_seed_index_and_slice_all_matter():
    keys = itertools.product((0, 1), (0, 1), SLICES)
    digests = {
        digest_of(generate(seed, index, slice=name, num_frames=1, size_hw=SMALL_HW))
        for seed, index, name in keys
    }
    assert len(digests) == 2 * 2 * len(SLICES)


def test_frames_do_not_depend_on_what_else_is_painted():
    whole = generate(3, 5, slice="position", num_frames=6, size_hw=(96, 128))
    some = generate(3, 5, slice="position", num_frames=6, size_hw=(96, 128), frame_indices=(4, 1))
    np.testing.assert_array_equal(some.frames, whole.frames[[4, 1]])
    np.testing.assert_array_equal(some.label_map, whole.label_map[[4, 1]])
    np.testing.assert_array_equal(some.amodal_px, whole.amodal_px[[4, 1]])
    single = generate(3, 5, slice="position", num_frames=1, size_hw=(96, 128))
    np.testing.assert_array_equal(single.frames[0], whole.frames[0])
    assert single.expressions == some.expressions == whole.expressions


def test_arrays_have_the_promised_form():
    video = generate(1, 2, slice="motion", num_frames=3, size_hw=(80, 120))
    assert video.frames.shape == (3, 80, 120, 3)
    assert video.frames.dtype == video.label_map.dtype == np.uint8
    assert video.label_map.shape == (3, 80, 120)
    num_objects = len(video.scene.objects)
    assert set(np.unique(video.label_map)) <= set(range(num_objects + 1))
    assert visible_px(video).shape == video.amodal_px.shape == (3, num_objects)
    assert np.all(visible_px(video) <= video.amodal_px)
    mask = video.mask(2)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask.sum((1, 2)), visible_px(video)[:, 1])


@pytest.mark.parametrize("name", SLICES)
def test_every_expression_fits_exactly_one_object(name):
    """With the margins that choose expressions: clearly the object, clearly no other one."""
    words = set(vocabulary([name]))
    for video in videos(name, 150, num_frames=1, size_hw=SMALL_HW):
        named = [expression.object_id for expression in video.expressions]
        assert len(named) >= 2
        assert len(set(named)) == len(named)
        for expression in video.expressions:
            assert expression.slice == name
            assert set(expression.text.split()) <= words
            for strictness in (-1.0, 0.0, 1.0):
                only = fits(expression.meaning, video.scene, 0.0, strictness)
                assert only == {expression.object_id}, (video.index, expression.text)


@pytest.mark.parametrize("name", ["attribute", "size", "position", "relation"])
def test_expressions_stay_true_while_the_object_is_in_view(name):
    for video in videos(name, 40, num_frames=1, size_hw=SMALL_HW):
        for expression in video.expressions:
            item = video.scene.objects[expression.object_id - 1]
            for time in CLIP_TIMES:
                if video.scene.is_in_view(item, time):
                    assert fits(expression.meaning, video.scene, time) == {item.object_id}


def test_track_expressions_are_false_at_the_end_where_a_twin_is_left():
    exchanged = 0
    for video in videos("track", 60, num_frames=1, size_hw=SMALL_HW):
        assert len(video.expressions) >= 2
        for expression in video.expressions:
            item = video.scene.objects[expression.object_id - 1]
            later = fits(expression.meaning, video.scene, 1.0, -1.0)
            assert item.object_id not in later
            exchanged += len(later) == 1
            twins = [
                other
                for other in video.scene.objects
                if (other.shape, other.pattern, other.colour_at(1.0), other.tilt)
                == (item.shape, item.pattern, item.colour_at(1.0), item.tilt)
            ]
            assert len(twins) == 2
    # In three of four videos the expression has come to fit the twin.
    assert exchanged > 60


NOUNS = {
    **{shape: shape for shape in OUTLINES},
    **{"disc": "circle", "ball": "circle", "box": "square", "hoop": "ring", "plus": "cross"},
    "crescent": "moon",
}
COLOUR_WORDS = {"violet": "purple", "turquoise": "cyan"}


def told_apart(video, words):
    """Return the ids of the objects that nouns, colours and patterns among the words allow."""
    shapes = {NOUNS[word] for word in words if word in NOUNS}
    colours = {COLOUR_WORDS.get(word, word) for word in words}
    if "without" in words or "plain" in words or "solid" in words:
        patterns = {"plain"}
    else:
        stems = {"stripe": "striped", "dot": "dotted", "spot": "dotted", "che": "checkered"}
        patterns = {p for stem, p in stems.items() if any(w.startswith(stem) for w in words)}
    assert len(shapes) <= 1
    found = [
        item.object_id
        for item in video.scene.objects
        if not (shapes and item.shape not in shapes)
        and not (patterns and item.pattern not in patterns)
    ]
    painted = {item.colour for item in video.scene.objects}
    if colours & painted:
        found = [k for k in found if video.scene.objects[k - 1].colour in colours]
    return found


def middle_of(mask):
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    return (columns[0] + columns[-1]) / 2, (rows[0] + rows[-1]) / 2


def read_by_pixels(video, text):
    """Return the ids that a sentence fits in frame 0, judged by words and mask pixels alone."""
    masks = {k: video.label_map[0] == k for k in range(1, len(video.scene.objects) + 1)}
    height, width = video.label_map.shape[1:]
    middle = {k: middle_of(mask) for k, mask in masks.items()}
    words = text.split()
    joints = ("above", "over", "below", "under", "left of the", "right of the", "to the")
    anchored = [j for j in joints if f" {j} " in text] if video.slice == "relation" else []
    if anchored:
        it, anchor = text.split(f" {anchored[0]} ", 1) if anchored else (text, "")
        (there,) = told_apart(video, anchor.split())
        group = [k for k in told_apart(video, it.split()) if k != there]
        ways = {k: np.subtract(middle[k], middle[there]) for k in group}
        if anchored[0] == "to the" and "left" not in text and "right" not in text:
            return [min(ways, key=lambda k: math.hypot(*ways[k]))]
        side = {"a": (0, -1), "o": (0, -1), "b": (0, 1), "u": (0, 1), "l": (-1, 0), "r": (1, 0)}
        x, y = side[(anchor if anchored[0] == "to the" else anchored[0])[0]]
        return [k for k, way in ways.items() if (x * way[0] + y * way[1]) > 0.62 * math.hypot(*way)]
    group = told_apart(video, words)
    if video.slice == "attribute":
        return group
    if video.slice == "size":
        pick = max if set(words) & {"largest", "biggest", "larger", "bigger"} else min
        return [pick(group, key=lambda k: np.count_nonzero(masks[k]))]
    x = {k: middle[k][0] / width for k in group}
    y = {k: middle[k][1] / height for k in group}
    if "leftmost" in words or "rightmost" in words or "furthest" in words:
        return [(min if "left" in text else max)(group, key=x.get)]
    if set(words) & {"topmost", "highest", "lowest", "nearest"}:
        return [(max if set(words) & {"lowest", "bottom"} else min)(group, key=y.get)]
    if "middle" in words or "centre" in words:
        return [k for k in group if max(abs(x[k] - 0.5), abs(y[k] - 0.5)) < 0.17]
    if "left" in words or "right" in words:
        return [k for k in group if (x[k] < 0.5) == ("left" in words)]
    return [k for k in group if (y[k] < 0.5) == bool(set(words) & {"top", "upper"})]


@pytest.mark.parametrize("name", ["attribute", "size", "position", "relation"])
def test_words_and_pixels_alone_lead_to_the_object(name):
    """A reader that knows nothing of meanings or poses finds the same, single object."""
    for video in videos(name, 60, num_frames=1, size_hw=(192, 192), texts_per_object=2):
        for expression in video.expressions:
            found = read_by_pixels(video, expression.text)
            assert found == [expression.object_id], (video.index, expression.text)


def test_named_motions_are_seen_in_the_masks():
    seen = set()
    for video in videos("motion", 60, frame_indices=(0, 8, 15), size_hw=(128, 128)):
        in_sight = visible_px(video) == video.amodal_px
        for expression in video.expressions:
            k, measure = expression.object_id, expression.meaning.measure
            if measure == "leaves":
                assert video.amodal_px[1, k - 1] < 0.5 * video.amodal_px[0, k - 1]
            if not in_sight[2, k - 1] or not in_sight[0, k - 1]:
                continue
            first, last = (middle_of(video.mask(k)[row]) for row in (0, 2))
            growth = video.amodal_px[2, k - 1] / video.amodal_px[0, k - 1]
            step = np.subtract(last, first) / 128
            right, down = step
            seen.add(measure)
            assert {
                "moves left": right < -0.2,
                "moves right": right > 0.2,
                "moves up": down < -0.2,
                "moves down": down > 0.2,
                "stays": abs(step).max() < 0.05 and 0.8 < growth < 1.25,
                "grows": growth > 1.5,
                "shrinks": growth < 0.67,
                "leaves": True,
            }[measure], (video.index, expression.text)
    assert seen == {measure for measure, entry in MEASURES.items() if entry.slice == "motion"}


@pytest.mark.parametrize("name", SLICES)
def test_objects_are_many_visible_and_have_look_alikes(name):
    for video in videos(name, 25, frame_indices=(0,)):
        assert len(video.scene.objects) >= 4
        target = video.scene.objects[video.expressions[0].object_id - 1]
        assert has_distractors(video.scene, target)
        others = [item for item in video.scene.objects if item is not target]
        assert any(item.shape == target.shape for item in others)
        assert any(item.colour == target.colour for item in others)
        assert visible_px(video)[0].min() >= 150
        # Corners of neighbours may just touch.
        assert np.all(visible_px(video)[0] >= 0.95 * video.amodal_px[0])


def test_objects_leave_return_hide_and_change_size():
    left = hidden = resized = 0
    for video in videos("attribute", 40, size_hw=SMALL_HW):
        full, visible = video.amodal_px, visible_px(video)
        left += bool(((full == 0).any(0) & (full[-1] > 0)).any())
        hidden += bool(((visible < 0.6 * full) & (full > 20)).any())
        resized += bool((full[-1] > 1.6 * full[0]).any() or (full[-1] < 0.6 * full[0]).any())
    assert 5 <= left <= 25
    assert hidden >= 15
    assert resized >= 15


def test_light_noise_and_backdrop_change_from_frame_to_frame():
    video = generate(2, 0, slice="attribute", frame_indices=(0, 1, 15))
    background = (video.label_map == 0).all(0)
    shades = video.frames.astype(np.int64)[:, background]
    assert (shades[0] != shades[1]).mean() > 0.5
    assert abs(shades[0].mean() - shades[2].mean()) > 1.0


def test_label_map_agrees_with_a_slow_painter():
    """Pixel by pixel in double precision; only a pixel centre right on an outline may differ."""
    video = generate(11, 4, slice="attribute", num_frames=5, size_hw=SMALL_HW, frame_indices=(2,))
    assert video.scene.pole is None
    slow = np.zeros(SMALL_HW, np.uint8)
    for item in video.scene.objects:
        pose = item.pose_at(0.5)
        turn = 2.0 * math.atan(pose.tilt)
        for row, column in itertools.product(range(64), range(64)):
            x, y = (column + 0.5) / 64 - pose.x, (row + 0.5) / 64 - pose.y
            along = (x * math.cos(turn) + y * math.sin(turn)) / pose.radius
            across = (y * math.cos(turn) - x * math.sin(turn)) / pose.radius
            if OUTLINES[item.shape](np.array(along), np.array(across)) <= 0.0:
                slow[row, column] = item.object_id
    assert np.count_nonzero(slow) > 200
    assert np.count_nonzero(slow != video.label_map[0]) <= 1


@pytest.mark.parametrize("shape", OUTLINES)
def test_outlines_stay_within_reach_and_have_unit_slope(shape):
    x, y = np.meshgrid(*[np.linspace(-1.5, 1.5, 301, dtype=np.float32)] * 2)
    distance = OUTLINES[shape](x, y)
    assert distance.dtype == np.float32
    assert distance[np.hypot(x, y) > REACH].min() > 0.0
    area = np.count_nonzero(distance <= 0.0) * 0.01**2
    assert 1.2 < area < 3.2
    # Antialiasing takes the distance for pixels: near the outline it must grow by 1 per unit.
    slope = np.hypot(*np.gradient(distance, 0.01))
    assert 0.95 < np.median(slope[np.abs(distance) < 0.03]) < 1.05


@pytest.mark.parametrize("name", SLICES)
def test_answers_that_ignore_the_expression_stay_below_035(name):
    scores = {"largest": [], "centre": [], "all": []}
    for index in range(40):
        video = generate(900_000, index, slice=name, frame_indices=(0, 12))
        for labels, sizes in zip(video.label_map, visible_px(video), strict=True):
            there = [k for k in range(1, len(sizes) + 1) if sizes[k - 1]]
            middles = {k: np.subtract(middle_of(labels == k), 127.5) for k in there}
            answers = {
                "largest": labels == 1 + int(np.argmax(sizes)),
                "centre": labels == min(there, key=lambda k: math.hypot(*middles[k])),
                "all": labels > 0,
            }
            true = labels == video.expressions[0].object_id
            for answer, mask in answers.items():
                both = region_similarity(mask, true)
                both += outline_agreement(outline_of(mask), outline_of(true))
                scores[answer].append(both / 2)
    means = {answer: float(np.mean(values)) for answer, values in scores.items()}
    assert max(means.values()) < 0.35, means


def test_several_texts_mean_the_same_and_vary():
    texts = set()
    for video in videos("size", 10, num_frames=1, size_hw=SMALL_HW, texts_per_object=4):
        for four in zip(*[iter(video.expressions)] * 4, strict=True):
            assert len({(e.object_id, e.meaning) for e in four}) == 1
            texts.update(e.text for e in four)
        plain = generate(900_001, video.index, slice="size", num_frames=1, size_hw=SMALL_HW)
        assert plain.expressions == video.expressions[::4]
    assert len(texts) > 60


def test_vocabulary_is_sorted_and_without_placeholders():
    words = vocabulary()
    assert list(words) == sorted(set(words))
    assert all(word.isalpha() and word == word.lower() for word in words)
    assert {"the", "circle", "turquoise", "leftmost", "initially", "stripes"} <= set(words)


def test_the_vocabulary_of_slices_leaves_out_the_words_of_others():
    assert vocabulary(SLICES) == vocabulary()
    assert set(vocabulary()) == {word for name in SLICES for word in vocabulary([name])}
    own = {"attribute": "striped", "size": "tiniest", "position": "leftmost", "relation": "under"}
    own |= {"motion": "moving", "track": "initially"}
    for name, word in own.items():
        assert [other for other in SLICES if word in vocabulary([other])] == [name]


@pytest.mark.parametrize(
    ("seed", "split"),
    [
        (0, "train"),
        (889_999, "train"),
        (890_000, "tune"),
        (899_999, "tune"),
        (900_000, "evaluate"),
        (10**9, "evaluate"),
    ],
)
def test_splits(seed, split):
    assert split_of(seed) == split


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"seed": -1}, "seed -1 is negative: give 0 or more"),
        ({"index": -2}, "index -2 is negative: give 0 or more"),
        ({"slice": "colour"}, "unknown slice 'colour': give one of attribute, size, position"),
        ({"num_frames": 0}, "num_frames 0, texts_per_object 1: give 1 or more of each"),
        ({"texts_per_object": 0}, "texts_per_object 0: give 1 or more"),
        ({"size_hw": (32, 64)}, r"size_hw \(32, 64\): give a height and a width of 64 pixels"),
        ({"size_hw": (64, 256)}, "the longer at most 3 times the shorter"),
        (
            {"frame_indices": (0, 16)},
            r"frame_indices \[0, 16\]: give at least one, each from 0 to 15",
        ),
        ({"frame_indices": ()}, r"frame_indices \[\]: give at least one"),
    ],
)
def test_refuses_arguments_out_of_range(arguments, text):
    with pytest.raises(UsageError, match=text):
        generate(**{"seed": 0, "index": 0, "slice": "size", **arguments})

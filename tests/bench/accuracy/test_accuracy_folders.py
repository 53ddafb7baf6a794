"""Bad results and annotations are refused by file name before a frame is scored."""

import numpy as np
import pytest
from accuracy_twin import write_clip
from mask_files import write_mask
from PIL import Image

from refsam_bench.accuracy import protocols
from refsam_bench.accuracy.mask_png import read_label_map
from refsam_bench.accuracy.protocols import score_results
from refsam_trt.errors import DatasetError

GOOD = np.zeros((6, 8), np.uint8)
GOOD[1:4, 1:4] = 1


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A good pair of folders, two sequences of five frames; scoring a frame fails the test."""
    for side in ("results", "annotations"):
        for name in ("cat", "dog"):
            write_clip(tmp_path / side / name, [GOOD] * 5)
    monkeypatch.setattr(protocols, "_frame_scores", fail_to_score)
    return tmp_path


def fail_to_score(*_):
    raise AssertionError("a frame was scored before everything was checked")


def refusal(root, protocol="davis-semi", **options):
    with pytest.raises(DatasetError) as caught:
        score_results(root / "results", root / "annotations", protocol, **options)
    return str(caught.value).replace(f"{root}/", "")


def test_good_folders_reach_the_scoring(root):
    with pytest.raises(AssertionError, match="a frame was scored"):
        score_results(root / "results", root / "annotations", "davis-semi")


def test_missing_result_frames(root):
    (root / "results/dog/00002.png").unlink()
    (root / "results/dog/00003.png").unlink()
    assert refusal(root).startswith(
        "results/dog/00002.png: no such file; 2 of 3 scored frames have no result; run the missing"
    )


@pytest.mark.parametrize("frame", ["00000", "00004"])
def test_unsup_needs_the_first_and_the_last_frame(root, frame):
    (root / f"results/dog/{frame}.png").unlink()
    assert f"results/dog/{frame}.png: no such file; 1 of 5" in refusal(root, "davis-unsup")


def test_missing_annotation_frame(root):
    (root / "annotations/dog/00002.png").unlink()
    assert refusal(root).startswith(
        "annotations/dog/00001.png: is followed by 00003.png, expected the next number; restore"
    )


def test_frame_numbers_without_zeros_in_front(root):
    write_clip(root / "annotations/dog", [GOOD] * 12)
    for path in (root / "annotations/dog").iterdir():
        path.rename(path.with_name(path.name.lstrip("0") if path.name != "00000.png" else "0.png"))
    assert "annotations/dog/1.png: is followed by 10.png" in refusal(root)
    assert "pad with zeros" in refusal(root)


def test_sparse_annotations_are_no_gap(root, monkeypatch):
    for side in ("results", "annotations"):
        for index in (4, 3, 2, 1):
            path = root / side / "dog" / f"{index:05d}.png"
            path.rename(path.with_name(f"{index * 5:05d}.png"))
    monkeypatch.undo()
    scores = score_results(root / "results", root / "annotations", "davis-unsup")
    assert scores.sequences[1].objects[0].frames == ("00000", "00005", "00010", "00015", "00020")


@pytest.mark.parametrize("frame", ["00000", "00002", "00004"])
def test_annotation_of_another_size(root, frame):
    write_other_size(root / "annotations/dog", frame)
    other = "8x6, expected 9x7" if frame == "00000" else "9x7, expected 8x6"
    assert f": found a mask of {other} as in the first annotation" in refusal(root)


def test_result_of_another_size(root):
    write_other_size(root / "results/dog", "00002")
    assert refusal(root) == (
        "results/dog/00002.png: found a mask of 9x7, expected 8x6 as in the first annotation; "
        "write masks in the original size"
    )


def write_other_size(folder, frame):
    Image.fromarray(np.ones((7, 9), np.uint8)).save(folder / f"{frame}.png")


def test_predicted_id_that_no_mask_has(root):
    Image.fromarray(GOOD * 2).save(root / "results/dog/00003.png")
    assert refusal(root) == (
        "results/dog/00003.png: found object id 2, but no mask has that id: the objects of "
        "annotations/dog/00000.png are 1 to 1; write consecutive ids from 1, 0 for background"
    )


@pytest.mark.parametrize("protocol", ["davis-semi", "davis-unsup"])
def test_masks_of_0_and_255_are_no_label_maps(root, protocol):
    write_mask(root / "results/dog/00003.png", GOOD > 0)
    text = refusal(root, protocol)
    assert text.startswith("results/dog/00003.png: found object id 255, ")
    assert text.endswith("or score masks of 0 and 255 with per-expression")


def test_first_annotation_without_object(root):
    Image.fromarray(np.where(GOOD == 1, 255, 0).astype(np.uint8)).save(
        root / "annotations/dog/00000.png"
    )
    assert refusal(root).startswith(
        "annotations/dog/00000.png: the first annotation shows no object, so nothing"
    )


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "I;16"])
@pytest.mark.parametrize("side", ["results", "annotations"])
def test_png_that_is_neither_palette_nor_grey(root, mode, side):
    path = root / side / "dog/00002.png"
    Image.new(mode, (8, 6)).save(path)
    assert refusal(root).startswith(
        f"{side}/dog/00002.png: found a PNG of mode {mode}, expected a palette or grey PNG"
    )


def test_file_that_is_no_png(root):
    Image.new("L", (8, 6)).save(root / "results/dog/00002.png", format="JPEG")
    assert refusal(root).startswith("results/dog/00002.png: cannot be read (cannot identify")


def test_png_that_was_cut_off(root):
    path = root / "results/dog/00002.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 2, (6, 8), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-25])
    assert refusal(root).startswith("results/dog/00002.png: cannot be read (")


def test_missing_and_empty_folders(root):
    results, annotations = root / "results", root / "annotations"
    with pytest.raises(DatasetError, match="nowhere: no such folder; expected the results"):
        score_results(root / "nowhere", annotations, "davis-semi")
    with pytest.raises(DatasetError, match="nowhere: no such folder; expected the annotations"):
        score_results(results, root / "nowhere", "davis-semi")
    (root / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty: found no folder in it, expected the results"):
        score_results(root / "empty", annotations, "davis-semi")
    (annotations / "cow").mkdir()
    (results / "cow").mkdir()
    assert refusal(root) == "annotations/cow: found no PNG file, expected <frame>.png"


def test_sequence_that_lacks_one_side(root):
    write_clip(root / "results/cow", [GOOD] * 5)
    assert refusal(root).startswith("annotations/cow: no annotations for this sequence; name the")
    write_clip(root / "annotations/hen", [GOOD] * 5)
    text = refusal(root, sequences=["dog", "hen"])
    assert text.startswith("results/hen: no results for this sequence; produce them")


def test_two_frames_are_too_few_for_semi(root):
    for side in ("results", "annotations"):
        for index in (2, 3, 4):
            (root / side / "dog" / f"{index:05d}.png").unlink()
    assert refusal(root) == (
        "annotations/dog: found 2 annotated frames, expected at least 3: davis-semi does not score "
        "the first and the last one"
    )


@pytest.fixture
def expressions(tmp_path, monkeypatch):
    for side in ("results", "annotations"):
        for name in ("0", "1"):
            for frame in ("00000", "00001"):
                write_mask(tmp_path / side / "dog" / name / f"{frame}.png", GOOD > 0)
    monkeypatch.setattr(protocols, "_frame_scores", fail_to_score)
    return tmp_path


@pytest.mark.parametrize("side", ["results", "annotations"])
def test_expression_that_lacks_one_side(expressions, side):
    (expressions / side / "dog/1").rename(expressions / side / "dog/2")
    assert refusal(expressions, "per-expression") == (
        f"{side}/dog/1: no such folder; results and annotations must have the same expressions"
    )


def test_label_map_is_no_mask_of_an_expression(expressions):
    frame = GOOD.copy()
    frame[5, 5] = 7
    Image.fromarray(frame).save(expressions / "results/dog/1/00001.png")
    assert refusal(expressions, "per-expression").startswith(
        "results/dog/1/00001.png: found 2 object ids (1, 7), expected one mask: 0 and one other"
    )


def test_sequences_of_label_maps_are_no_expressions(root):
    assert refusal(root, "per-expression").startswith(
        "results/cat: found no folder in it, expected the results of the expressions"
    )


@pytest.mark.parametrize("mode", ["P", "L", "1"])
def test_palette_grey_and_bilevel_png_hold_ids(tmp_path, mode):
    path = tmp_path / "mask.png"
    image = Image.fromarray(GOOD)
    if mode == "P":
        image.putpalette([0, 0, 0, 200, 0, 0])
    elif mode == "1":
        image = Image.fromarray(GOOD > 0)
    image.save(path)
    found = read_label_map(path)
    assert found.dtype == np.uint8
    assert (found == GOOD).all()

"""Ref-DAVIS17: the reader on real data, its refusals, the merge, and the mean of annotators."""

import json
import shutil

import numpy as np
import pytest
import shared_data
from accuracy_twin import write_clip
from PIL import Image

from refsam_bench.accuracy.protocols import score_results
from refsam_bench.accuracy.ref_davis import load_ref_davis, score_ref_davis
from refsam_trt.errors import DatasetError

TWO = np.zeros((8, 12), np.uint8)
TWO[1:5, 1:5] = 1
TWO[2:6, 7:11] = 2
SWAPPED = np.array([0, 2, 1], np.uint8)[TWO]
NOTHING = np.zeros_like(TWO)


@pytest.fixture
def root(tmp_path):
    """A data set of one video: three frames, two objects, eight expressions."""
    write_clip(tmp_path / "valid/Annotations/cats", [TWO] * 3)
    (tmp_path / "valid/JPEGImages/cats").mkdir(parents=True)
    for frame in range(3):
        image = Image.new("RGB", (12, 8))
        image.save(tmp_path / f"valid/JPEGImages/cats/{frame:05d}.jpg")
    save_expressions(tmp_path, {"cats": entry()})
    return tmp_path


def entry(num_objects=2):
    count = 4 * num_objects
    sentences = {str(i): {"exp": f"cat {i}", "obj_id": str(i // 4 + 1)} for i in range(count)}
    return {"expressions": sentences, "frames": ["00000", "00001", "00002"]}


def expression_file(root):
    return root / "meta_expressions/valid/meta_expressions.json"


def save_expressions(root, videos):
    path = expression_file(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos}), encoding="utf-8")


def refusal(root):
    with pytest.raises(DatasetError) as caught:
        load_ref_davis(root)
    return str(caught.value).replace(f"{root}/", "")


def test_real_videos_are_read():
    videos = load_ref_davis(shared_data.path("ref-davis-mini"))
    by_name = {video.name: video for video in videos}
    assert len(by_name) == 7
    jump = by_name["dogs-jump"]
    assert (len(jump.frames), jump.size_hw, len(jump.expressions)) == (66, (240, 432), 4)
    assert [len(row) for row in by_name["schoolgirls"].expressions] == [7] * 4
    assert by_name["blackswan"].expressions[0] == ("a black feathered swan",)
    assert (jump.image_folder / f"{jump.frames[65]}.jpg").is_file()
    assert (jump.annotation_folder / f"{jump.frames[65]}.png").is_file()


def test_expressions_are_by_annotator_and_object(root):
    (video,) = load_ref_davis(root)
    assert video.expressions == tuple((f"cat {k}", f"cat {k + 4}") for k in range(4))
    assert video.frames == ("00000", "00001", "00002")


def test_expressions_without_object_ids_are_taken_in_order(root):
    sentences = {str(index): {"exp": f"cat {index}"} for index in reversed(range(8))}
    save_expressions(root, {"cats": {**entry(), "expressions": sentences}})
    (video,) = load_ref_davis(root)
    assert video.expressions[3] == ("cat 3", "cat 7")


FILE = "meta_expressions/valid/meta_expressions.json"


def one_video(name="a", frames=("0",), expressions=None):
    expressions = {"0": {"exp": "x"}} if expressions is None else expressions
    return json.dumps({"videos": {name: {"frames": frames, "expressions": expressions}}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not an expression file (Object missing required field `videos`)"),
        ("[1]", "not an expression file (Expected `object`, got `array`)"),
        ('{"videos": {}}', "names no video; expected at least one entry under 'videos'"),
        ("{", "not an expression file (Input data was truncated)"),
        ('{"videos": {"a": 1}}', "not an expression file (Expected `object`, got `int`"),
        ('{"videos": {"a": {"frames": ["0"]}}}', "missing required field `expressions`"),
        (one_video("../x"), "'../x' cannot be the name of a file; correct it"),
        (one_video(frames=()), "video a: found 0 frames and 1 expressions, expected at least one"),
        (one_video(frames=("0", "0")), "found 2 frames and 1 expressions, expected at least one"),
        (one_video(expressions={}), "1 frames and 0 expressions"),
        (one_video(expressions={"..": {"exp": "x"}}), "'..' cannot be the name of a file"),
        (one_video("a" * 201), "aaa' cannot be the name of a file"),
        (
            one_video(expressions={"0": {"exp": " "}}),
            "expression 0: expected 'exp', a sentence, fou",
        ),
    ],
)
def test_expression_files_that_cannot_be_used(root, text, message):
    expression_file(root).write_text(text, encoding="utf-8")
    assert refusal(root).startswith(FILE)
    assert message in refusal(root)


def test_missing_expression_file(root):
    expression_file(root).unlink()
    assert refusal(root).startswith(f"{FILE}: cannot be read (No such file or directory)")


def test_expression_file_names_a_video_that_is_not_there(root):
    save_expressions(root, {"cats": entry(), "dogs": entry()})
    assert refusal(root) == "valid/Annotations/dogs: found no PNG file, expected <frame>.png"


def test_object_id_that_no_mask_has(root):
    save_expressions(root, {"cats": entry(num_objects=3)})
    assert refusal(root) == (
        f"{FILE}: names object 3 of video cats, but no mask in valid/Annotations/cats has that id; "
        "correct the expressions or the annotations"
    )


def test_expressions_that_are_not_four_per_object(root):
    broken = entry()
    del broken["expressions"]["7"]
    save_expressions(root, {"cats": broken})
    assert "video cats: found the expressions 0, 1, 2, 3, 4, 5, 6, expected 0" in refusal(root)


def test_expressions_in_another_order(root):
    broken = entry()
    broken["expressions"]["3"]["obj_id"] = "2"
    save_expressions(root, {"cats": broken})
    assert "video cats: expression 3 is of object 2, expected 1: expressions" in refusal(root)


def test_missing_and_unlisted_frames(root):
    (root / "valid/JPEGImages/cats/00001.jpg").unlink()
    assert refusal(root).startswith("valid/JPEGImages/cats/00001.jpg: cannot be read as a JPEG")
    (root / "valid/Annotations/cats/00002.png").unlink()
    assert refusal(root).startswith("valid/Annotations/cats/00002.png: no such file, though")
    write_clip(root / "valid/Annotations/cats", [TWO] * 4)
    assert refusal(root).startswith("valid/Annotations/cats/00003.png: ")
    assert "does not list this frame" in refusal(root)


def test_files_of_another_size(root):
    Image.fromarray(TWO[:, :-1]).save(root / "valid/Annotations/cats/00001.png")
    assert refusal(root).startswith("valid/Annotations/cats/00001.png: found 11x8, expected 12x8")
    Image.new("RGB", (12, 9)).save(root / "valid/JPEGImages/cats/00001.jpg")
    assert refusal(root).startswith("valid/JPEGImages/cats/00001.jpg: found 12x9, expected 12x8")


@pytest.fixture
def annotated(tmp_path):
    """Four annotators: right, right with swapped ids, nothing, right."""
    for annotator, label_map in enumerate([TWO, SWAPPED, NOTHING, TWO]):
        write_clip(tmp_path / "results" / str(annotator) / "cats", [label_map] * 3)
        write_clip(tmp_path / "results" / str(annotator) / "dogs", [TWO] * 3)
    for name in ("cats", "dogs"):
        write_clip(tmp_path / "annotations" / name, [TWO] * 3)
    return tmp_path


def test_four_annotators_are_averaged(annotated):
    scores = score_ref_davis(annotated / "results", annotated / "annotations")
    assert [each.j_and_f for each in scores.annotators] == [1, 1, 0.5, 1]
    assert (scores.j, scores.f, scores.j_and_f, scores.j_recall) == (0.875,) * 4
    alone = score_results(annotated / "results/2", annotated / "annotations", "davis-unsup")
    assert scores.annotators[2] == alone
    found = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert found["j_and_f"] == 0.875
    assert {name: each["j"] for name, each in found["sequences"].items()} == {
        "cats": 0.75,
        "dogs": 1,
    }
    assert found["annotators"][2]["sequences"]["cats"]["j_and_f"] == 0


def test_an_annotator_that_lacks_something_is_refused(annotated):
    shutil.rmtree(annotated / "results/3/dogs")
    with pytest.raises(DatasetError, match="results/3/dogs: no results for this sequence"):
        score_ref_davis(annotated / "results", annotated / "annotations")
    shutil.rmtree(annotated / "results/1")
    with pytest.raises(DatasetError, match="results/1: no such folder; expected the folders 0 to"):
        score_ref_davis(annotated / "results", annotated / "annotations")

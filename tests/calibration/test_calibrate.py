"""The whole of `refsam-calibrate` on the tiny model: what is written, kept, refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from calibration_model import BLOCKS
from commands_in_process import Commands, Ended
from exported import exported

import refsam_trt
from refsam_bench.synthetic import generate
from refsam_calibration import calibrate as module
from refsam_calibration import cli
from refsam_calibration.gate import judge
from refsam_calibration.gate.judge import LayerJudge
from refsam_calibration.quantise.layers import choose_units
from refsam_calibration.ranges import measure
from refsam_calibration.report import to_json
from refsam_calibration.request import CalibrateRequest
from refsam_export.refsam.model.config import preset
from refsam_trt.bundle.open import open_bundle
from refsam_trt.command.progress import Progress

CLIPS = """
schema = 1
[[calibrate]]
kind = "synthetic"
num_videos = 2
frames_per_video = 2
[rank]
kind = "synthetic"
seed = 890000
num_videos = 1
[search]
kind = "synthetic"
seed = 890001
num_videos = 1
[verify]
kind = "synthetic"
seed = 900000
num_videos = 1
"""
LAYERS = "blocks.0.qkv,blocks.5.lin2,blocks.6.adapter"
NAMES = LAYERS.split(",")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "tiny", precisions=("fp32", "fp16"))


@pytest.fixture
def run(bundle: Path, tmp_path: Path, monkeypatch, capfd):
    (tmp_path / "clips.toml").write_text(CLIPS, encoding="utf-8")
    command = Commands(monkeypatch, capfd)

    def call(*arguments: object, output: str | None = "out", layers: str = LAYERS) -> Ended:
        where = [] if output is None else ["--output", tmp_path / output]
        clips = ["--clips", tmp_path / "clips.toml", "--layers", layers]
        return command(cli.main, bundle, *clips, *where, *arguments)

    return call


def summary(ended: Ended) -> dict:
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def forbid(monkeypatch, *names: str) -> None:
    """Make every run of the model fail."""

    def fail(*_: object) -> None:
        raise AssertionError("the model ran")

    for of in (measure, judge):
        monkeypatch.setattr(of, "ReferenceTracker", fail)


@pytest.fixture(scope="module")
def written(bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """One run that writes a bundle, which takes longest: its folder, and what was found."""
    folder = tmp_path_factory.mktemp("written")
    (folder / "clips.toml").write_text(CLIPS, encoding="utf-8")
    request = CalibrateRequest(
        bundle, folder / "clips.toml", folder / "out", layers=tuple(NAMES), max_drop_points=50.0
    )
    display = module.Display(
        lambda line: None, lambda label, total: Progress(label, total, enabled=False)
    )
    return folder / "out", module.calibrate(request, display)


def test_the_bundle_holds_all_that_was_found(written, bundle):
    folder, done = written
    found = json.loads(json.dumps(to_json(done)))
    opened = open_bundle(folder)
    assert found["output_id"] == opened.bundle_id
    assert found["random_weights"] is True
    assert sorted(row["unit"] for row in found["ranking"]) == NAMES
    assert all(0.5 < row["mask_iou"] < 1.0 for row in found["ranking"])
    assert found["search"]["left_out"] == []
    assert found["verified"]["num_layers"] == 6
    quantisation = opened.manifest.quantisation
    assert quantisation is not None
    assert quantisation.base_bundle == open_bundle(bundle).bundle_id
    assert quantisation.layers[0] == f"{BLOCKS}.0.attn.qkv"
    assert len(quantisation.layers) == 6
    record = quantisation.record
    assert record["verified"] == found["verified"]
    assert record["fp16_range"]["passed"]
    assert 0 < record["fp16_range"]["max_abs"] <= 16384
    assert record["clips"]["verify"]["seed"] == 900_000
    assert "exponents" not in next(iter(record["ranges"]["smoothing"].values()))
    assert set(record["ranges"]["layers"]) == set(quantisation.layers)


def test_the_written_graphs_compute_what_was_judged(written):
    """ONNX Runtime's integer kernels against the float graphs: as far apart as was judged."""
    folder, done = written
    video = generate(900_000, 0, slice="attribute")
    masks = {}
    for precision in ("fp32", "int8"):
        with refsam_trt.load(folder, precision=precision, num_threads=1) as engine:
            results = engine.track(video.frames, [video.expressions[0].text])
            masks[precision] = np.stack([result.mask for result in results])
    union = (masks["fp32"] | masks["int8"]).sum((1, 2))
    iou = ((masks["fp32"] & masks["int8"]).sum((1, 2)) / union).mean()
    assert iou < 1.0
    assert iou == pytest.approx(done.verified.mask_iou, abs=0.01)


def test_a_bundle_that_is_quantised_already_is_refused_at_once(
    written, tmp_path, monkeypatch, capfd
):
    (tmp_path / "clips.toml").write_text(CLIPS, encoding="utf-8")
    forbid(monkeypatch)
    clips = ["--clips", tmp_path / "clips.toml", "--output", tmp_path / "twice"]
    ended = Commands(monkeypatch, capfd)(cli.main, written[0], *clips)
    assert ended.code == 2
    assert "quantised already (int8); give the bundle that it was made from" in ended.message


def test_what_was_measured_is_not_measured_again(run, tmp_path, monkeypatch):
    first = summary(run("--json", "--max-jf-drop-points", "50", "--stop-after", "search"))
    kept = sorted(path.name for path in (tmp_path / "out-work").iterdir())
    assert [name.partition("-")[0] for name in kept] == ["ranges", "rank", "search", "verify"]
    forbid(monkeypatch)
    ended = run("--json", "--max-jf-drop-points", "40", "--stop-after", "search")
    assert "ranges were measured before" in ended.err
    assert "3 of 3 units were judged before" in ended.err
    assert summary(ended) == first
    assert sorted(path.name for path in (tmp_path / "out-work").iterdir()) == kept


def test_interrupted_ranking_goes_on_where_it_stopped(run, monkeypatch):
    asked = []
    measured = LayerJudge._measure

    def interrupted(self, layers, label):
        asked.append(label)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return measured(self, layers, label)

    monkeypatch.setattr(LayerJudge, "_measure", interrupted)
    assert run("--stop-after", "sensitivity").code == 130
    assert run("--stop-after", "sensitivity").code == 0
    numbers = [label.split(",")[0] for label in asked]
    assert numbers == ["unit 1 of 3", "unit 2 of 3", "unit 3 of 3", "unit 3 of 3"]


def test_ranges_of_an_earlier_run_can_be_named(run, tmp_path, monkeypatch):
    first = summary(run("--json", "--stop-after", "ranges", "--alpha", "0.5"))
    path = first["ranges_file"]
    forbid(monkeypatch)
    again = summary(run("--json", "--stop-after", "ranges", "--ranges", path))
    assert again["ranges"] == first["ranges"]
    assert again["ranges"]["options"]["alpha"] == 0.5
    ended = run("--stop-after", "ranges", "--ranges", path, "--scheme", "fp8")
    assert (ended.code, "measured with scheme int8" in ended.message) == (2, True)
    ended = run("--stop-after", "ranges", "--ranges", path, "--seed", "1")
    told = f"{path}: ranges of other frames than those that "
    assert (ended.code, told in ended.message) == (2, True), ended.message


def test_another_seed_draws_other_frames(run):
    found = [
        summary(run("--json", "--stop-after", "ranges", "--seed", seed))["ranges"]["data_sha256"]
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]


@pytest.fixture
def costs(monkeypatch):
    """What judgements say was lost, in points, by the first word of their label."""
    lost = {"unit": 0.2, "3": 0.3, "verify:": 0.1}
    judged = LayerJudge._measure

    def measured(self, layers, label):
        found = judged(self, layers, label)
        points = next(v for k, v in lost.items() if label.startswith(k))
        return msgspec.structs.replace(found, reference_j_and_f=0.8, j_and_f=0.8 - points / 100)

    monkeypatch.setattr(LayerJudge, "_measure", measured)
    return lost


def test_a_budget_that_the_search_cannot_meet_ends_with_1_and_no_bundle(run, tmp_path, costs):
    costs.update({"unit": 2.0, "1": 2.0, "2": 2.0, "3": 6.0})
    ended = run("--max-jf-drop-points", "0.5")
    assert ended.code == 1
    assert (
        "within 0.4 points of J&F on the search's videos no layer can be quantised" in ended.message
    )
    assert all(name in ended.message for name in NAMES)
    assert not (tmp_path / "out").exists()


def test_what_breaks_the_budget_is_left_out_of_the_bundle(run, tmp_path, costs):
    """Two of three units fit: their layers are quantised in both bases, the third one's are not."""
    costs.update({"1": 0.1, "2": 0.2, "3": 9.0})
    ended = run("--max-jf-drop-points", "0.5", "--json")
    found = summary(ended)
    (left_out,) = found["search"]["left_out"]
    assert sorted([*found["search"]["chosen"], left_out]) == NAMES
    opened = open_bundle(tmp_path / "out")
    quantisation = opened.manifest.quantisation
    assert quantisation is not None
    units = {unit.name: unit.layers for unit in choose_units(preset("tiny"), NAMES)}
    kept = {layer for name in found["search"]["chosen"] for layer in units[name]}
    assert set(quantisation.layers) == kept
    shares = {unit.name: unit.share for unit in choose_units(preset("tiny"), NAMES)}
    assert found["search"]["share"] == pytest.approx(
        sum(shares.values()) - shares[left_out], rel=1e-6
    )
    for variant in opened.manifest.variants.values():
        if variant.precision == "int8":
            entry = variant.graphs["image_encoder"]
            assert entry.node_types["QuantizeLinear"] == len(kept)
            assert entry.node_dtypes["int8"] >= len(kept)


def test_the_fp16_audit_is_kept_for_the_next_run(run, costs, monkeypatch):
    costs["verify:"] = 0.7  # fails after the audit, so nothing is written
    assert run("--max-jf-drop-points", "0.5").code == 1

    def again(*_: object) -> None:
        raise AssertionError("audited twice")

    monkeypatch.setattr(module, "audit_half", again)
    assert run("--max-jf-drop-points", "0.5").code == 1


def test_a_verification_that_fails_ends_with_1_and_no_bundle(run, tmp_path, costs):
    costs["verify:"] = 0.7
    ended = run("--max-jf-drop-points", "0.5")
    assert ended.code == 1
    assert "verified: J&F 0.8000 became 0.7930, 0.70 points lost, 0.5 allowed" in ended.message
    assert "the layers that cost most: blocks." in ended.message
    assert not (tmp_path / "out").exists()


def test_a_budget_that_is_met_is_told_in_lines(run, costs, monkeypatch):
    made = SimpleNamespace(bundle_id="the new id")
    monkeypatch.setattr(module, "write_quantised_bundle", lambda *arguments: made)
    ended = run("--max-jf-drop-points", "0.5")
    assert ended.code == 0, ended.err
    assert "verified: J&F 0.8000 -> 0.7990 (+0.10 points lost)" in ended.out
    assert "note: the weights are random, so J&F says nothing" in ended.out
    assert "left out: none" in ended.out
    assert ended.out.endswith("bundle id: the new id\n")
    assert all(name in ended.out for name in NAMES)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--method", "entropy", "--scheme", "fp8"], "entropy counts int8's 128 equal steps"),
        (["--alpha", "much"], "'much' is neither auto, none nor a number"),
        (["--alpha", "2"], "alpha 2.0: expected 0 to 1, auto or none"),
        (["--percentile", "99"], "--percentile is of --method percentile"),
        (["--ranges", "never.json"], "never.json: no readable file of ranges"),
        (["--max-jf-drop-points", "nan"], "--max-jf-drop-points nan: expected a number of points"),
        (["--margin-points", "inf"], "--margin-points inf: expected a number of points, 0 or more"),
        (["--min-share", "0.99"], "--min-share 0.99: the layers that may be quantised have "),
    ],
)
def test_options_that_cannot_be_met_end_with_2(run, tmp_path, arguments, told):
    ended = run(*arguments)
    assert (ended.code, told in ended.message) == (2, True), ended.message
    assert not (tmp_path / "out").exists()


def test_unknown_layers_and_existing_outputs_are_refused_at_once(run, tmp_path, monkeypatch):
    forbid(monkeypatch)
    assert "--layers neck: no such layers" in run(layers="neck").message
    (tmp_path / "out").mkdir()
    assert "exists already; choose another name" in run().message


@pytest.mark.parametrize("work", ["out", "out/work", "other/../out"])
def test_a_work_folder_in_the_output_is_refused_at_once(run, tmp_path, monkeypatch, work):
    forbid(monkeypatch)
    ended = run("--work", tmp_path / work)
    assert (ended.code, "is the output or lies in it" in ended.message) == (2, True)


def test_a_work_folder_that_cannot_be_made_is_refused(run, tmp_path):
    (tmp_path / "file").write_text("")
    ended = run("--work", tmp_path / "file" / "work", "--stop-after", "ranges")
    assert ended.code == 2
    assert "cannot be written (Not a directory); choose another place" in ended.message

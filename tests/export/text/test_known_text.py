"""Expressions embedded at export: the runtime's own bits, with and without the text encoder."""

import shutil
from pathlib import Path
from typing import Any

import fake_bundle
import pytest
from commands_in_process import Commands
from exported import exported
from runtime_twin import assert_same_embedding, assert_same_results, random_frames

import refsam_trt
from refsam_export import cli, exporter
from refsam_export.exporter import ExportResult, export_bundle
from refsam_export.model_stages import Facts, ModelStages
from refsam_export.parity.figures import BOUNDS, Parity
from refsam_export.request import ExportRequest
from refsam_export.text.known_text import clean_expressions, write_known_expressions
from refsam_trt.bundle.open import open_bundle
from refsam_trt.errors import ExpressionError, UsageError
from refsam_trt.families.refsam.family import RefsamFamily
from refsam_trt.text.cache import TextCache, TextEmbedding
from refsam_trt.text.encoder import TextStatistics
from refsam_trt.text.tokenizer import Tokenizer

LINES = "a dog\n\n  A   Dog \na cat on the LEFT\n"
KNOWN = ("a dog", "a cat on the left")
PARITY = Parity(
    variant="fp32-augmented-optimised",
    precision="fp32",
    backend="ort-cpu",
    num_frames=3,
    num_tokens=[3],
    graphs={"text_encoder": {}},
    chain=[],
    max_graph_error=0.0,
    max_chain_error=0.0,
    min_mask_iou=1.0,
    mean_mask_iou=1.0,
    bounds=BOUNDS["fp32"],
)


@pytest.fixture
def expressions(tmp_path: Path) -> Path:
    (tmp_path / "expressions.txt").write_text(LINES)
    return tmp_path / "expressions.txt"


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `export_bundle` write the fake bundle's graphs instead of a model's, and not compare."""
    fake = fake_bundle.make_bundle(tmp_path / "fake", split="optimised", external_data=True)
    manifest = open_bundle(fake).manifest

    def described(stages: ModelStages) -> Facts:
        shutil.copy(fake / "tokenizer.json", stages.folder)
        return Facts(manifest, {})

    def written(stages: ModelStages) -> Any:
        shutil.copytree(fake, stages.folder / "graphs")
        return manifest, {name: stages.folder / "graphs" / name for name in manifest.files}

    monkeypatch.setattr(ModelStages, "_described", described)
    monkeypatch.setattr(ModelStages, "written", written)
    monkeypatch.setattr(ModelStages, "reference", lambda stages: stages.folder)
    monkeypatch.setattr(exporter, "in_process", lambda *_, **__: PARITY)


def export(output: Path, **options: Any) -> tuple[ExportResult, list[str]]:
    said: list[str] = []
    return export_bundle(ExportRequest("tiny", output, **options), said.append), said


def embed(bundle: Path, expression: str, **options: Any) -> tuple[TextEmbedding, TextStatistics]:
    with refsam_trt.load(bundle, **options) as engine:
        assert isinstance(engine.family, RefsamFamily)
        encoder = engine.family.text_encoder
        return encoder.encode(expression)[1], encoder.statistics


def run(bundle: Path) -> list[refsam_trt.FrameResults]:
    with refsam_trt.load(bundle) as engine, engine.open_video() as video:
        for text in KNOWN:
            video.add_expression(text)
        return [video.step(frame) for frame in random_frames(3)]


@pytest.mark.usefixtures("stand_in")
def test_known_expressions_are_what_the_text_graph_computes(
    tmp_path: Path, expressions: Path
) -> None:
    plain, _ = export(tmp_path / "plain")
    known, said = export(tmp_path / "known", expressions=expressions)
    assert (plain.num_expressions, known.num_expressions) == (0, 2)
    assert "embedding 2 expressions of 3 lines" in said
    assert open_bundle(plain.bundle).manifest.text_cache is None
    manifest = open_bundle(known.bundle).manifest
    assert manifest.text_cache == "text_cache.safetensors"
    assert manifest.parity == {PARITY.variant: PARITY.to_json()}
    assert TextCache(known.bundle / "text_cache.safetensors").expressions == KNOWN
    for text in KNOWN:
        found, hit = embed(known.bundle, text)
        computed, miss = embed(plain.bundle, text)
        assert (hit, miss) == (TextStatistics(num_bundle_hits=1), TextStatistics(num_misses=1))
        assert_same_embedding(found, computed)
    assert embed(known.bundle, "a cow")[1] == TextStatistics(num_misses=1)
    again, _ = export(tmp_path / "again", expressions=expressions)
    assert again.bundle_id == known.bundle_id


@pytest.mark.usefixtures("stand_in")
def test_without_text_encoder_the_bundle_gives_the_same_masks(
    tmp_path: Path, expressions: Path
) -> None:
    whole, _ = export(tmp_path / "whole", expressions=expressions)
    bare, _ = export(tmp_path / "bare", expressions=expressions, without_text_encoder=True)
    manifest = open_bundle(bare.bundle).manifest
    (variant,) = manifest.variants.values()
    assert set(variant.graphs) == {"image_encoder", "decoder_step"}
    assert manifest.parity == {PARITY.variant: PARITY.to_json()}
    assert sorted(p.name for p in bare.bundle.rglob("*") if p.is_file()) == [
        "decoder_step.onnx",
        "image_encoder.onnx",
        "image_encoder.onnx.data",
        "manifest.json",
        "manifest.sha256",
        "text_cache.safetensors",
        "tokenizer.json",
    ]
    for found, expected in zip(run(bare.bundle), run(whole.bundle), strict=True):
        assert_same_results(found, expected)
    assert embed(bare.bundle, "a DOG", text="cache-only")[1].num_bundle_hits == 1
    with pytest.raises(ExpressionError, match=r"'a cow' is not among the 2 .* --expressions FILE`"):
        embed(bare.bundle, "a cow")


def test_the_real_text_graph_gives_the_same_bits(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = exported(tmp_path_factory, "tiny", "optimised")
    bundle = open_bundle(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json", lowercase=True, max_words=64)
    texts = ("a dog", "the largest striped ball that is moving slowly to the right", "x " * 31)
    write_known_expressions(tmp_path / "cache", bundle, tokenizer, [t.strip() for t in texts])
    cache = TextCache(tmp_path / "cache")
    for text in texts:
        embedding = cache.get(text.strip())
        assert embedding is not None
        for num_threads in (None, 1):
            assert_same_embedding(embedding, embed(folder, text, num_threads=num_threads)[0])


def test_lines_that_no_session_could_use_are_named(tmp_path: Path) -> None:
    fake_bundle.write_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", lowercase=True, max_words=8)
    assert clean_expressions("f", [(1, "B  b"), (2, "a"), (5, "b B")], tokenizer) == ("b b", "a")
    for text, message in (
        ("12345678", "f, line 7: expression '12345678' has 9 tokens"),
        ("a\x07", r"f, line 7: expression 'a\\x07' holds the character U\+0007"),
    ):
        with pytest.raises(ExpressionError, match=message):
            clean_expressions("f", [(1, "a"), (7, text)], tokenizer)


def test_refusals_come_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: None
) -> None:
    with pytest.raises(UsageError, match="--expressions FILE, or leave --without-text-encoder out"):
        ExportRequest("tiny", tmp_path / "out", without_text_encoder=True)
    with pytest.raises(UsageError, match="ort-cpu, which cannot run bf16 graphs; add fp32 or fp16"):
        ExportRequest("tiny", tmp_path / "out", expressions=tmp_path / "file", precisions=("bf16",))
    (tmp_path / "file").write_text("a dog\n" + "dog " * 30)
    monkeypatch.setattr(ModelStages, "written", lambda _: pytest.fail("was called"))
    with pytest.raises(ExpressionError, match="file, line 2: expression 'dog dog"):
        export(tmp_path / "out", expressions=tmp_path / "file")
    monkeypatch.setattr(ModelStages, "_described", lambda _: pytest.fail("was called"))
    with pytest.raises(UsageError, match="nowhere: cannot be read as expressions"):
        export(tmp_path / "out", expressions=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("backbone", "arguments", "has_source"),
    [
        ("nano", (), True),
        ("vitb", (), False),
        ("nano", ("--without-text-encoder",), False),
        ("nano", ("--without-text-encoder", "--include-source"), True),
    ],
)
def test_the_weights_of_a_text_encoder_left_out_are_left_out_too(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    backbone: str,
    arguments: tuple[str, ...],
    has_source: bool,
) -> None:
    requests: list[ExportRequest] = []

    def export_bundle(request: ExportRequest, _: Any) -> ExportResult:
        requests.append(request)
        nothing = {"files": [], "random_init_seed": None}
        return ExportResult(request.output, "0" * 64, {}, nothing, num_expressions=3)

    monkeypatch.setattr(exporter, "export_bundle", export_bundle)
    options = ("--backbone", backbone, "--output", "out", "--expressions", "file", *arguments)
    ended = Commands(monkeypatch, capfd)(cli.main, *options)
    assert (ended.code, ended.out.splitlines()[0]) == (0, "text cache: 3 expressions")
    (request,) = requests
    assert (request.include_source, request.expressions) == (has_source, Path("file"))
    assert request.without_text_encoder == ("--without-text-encoder" in arguments)

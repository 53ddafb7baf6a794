import dataclasses

import fake_bundle
import msgspec
import pytest

from refsam_engines.variants import export_command, variant_for
from refsam_trt.bundle.open import Bundle, open_bundle
from refsam_trt.contract.manifest import Source, Weights
from refsam_trt.errors import UsageError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(fake_bundle.make_bundle(tmp_path_factory.mktemp("variants") / "bundle"))


def with_variants(bundle: Bundle, *names: str) -> Bundle:
    (variant,) = bundle.manifest.variants.values()
    variants = {}
    for name in names:
        precision, attention, split = name.split("-")
        variants[name] = msgspec.structs.replace(
            variant, precision=precision, attention=attention, split=split
        )
    manifest = msgspec.structs.replace(bundle.manifest, variants=variants)
    return dataclasses.replace(bundle, manifest=manifest)


def test_the_forms_that_fuse_and_save_work_come_first(bundle: Bundle):
    names = ("fp16-bias-baseline", "fp16-augmented-baseline", "fp16-augmented-optimised")
    many = with_variants(bundle, "fp32-augmented-optimised", *names)
    assert variant_for(many, "fp16") == "fp16-augmented-optimised"
    assert variant_for(many, "fp16", attention="bias") == "fp16-bias-baseline"
    assert variant_for(many, "fp16", split="baseline") == "fp16-augmented-baseline"


def test_a_missing_variant_is_refused_with_the_command_that_makes_it(bundle: Bundle):
    with pytest.raises(UsageError) as refused:
        variant_for(bundle, "bf16")
    assert str(refused.value) == (
        f"{bundle.folder}: no variant bf16-augmented-optimised, only fp32-plain-baseline; export "
        "it: refsam-export --backbone fake --random-init 0 --precision fp32,bf16 "
        "--output NEW_BUNDLE"
    )


def test_the_command_names_where_the_weights_came_from(bundle: Bundle):
    sources = (
        Source("sam_checkpoint", "sam_vit_b.pth", 1, "0" * 64),
        Source("checkpoint", "our weights.safetensors", 1, "0" * 64),
        Source("text_encoder", "config.json", 1, "0" * 64),
        Source("text_encoder", "model.safetensors", 1, "0" * 64),
    )
    manifest = msgspec.structs.replace(bundle.manifest, weights=Weights(sources))
    assert export_command(manifest, "fp16", "bias", "baseline") == (
        "refsam-export --backbone fake --sam-checkpoint sam_vit_b.pth --checkpoint "
        "'our weights.safetensors' --text-encoder FOLDER --precision fp32,fp16 --attention bias "
        "--split baseline --output NEW_BUNDLE"
    )

import re

import pytest

from refsam_engines.profiles import Sizes, profiles_for, sizes_within
from refsam_trt.contract import refsam
from refsam_trt.contract.manifest import Limits
from refsam_trt.contract.plan_manifest import Profile
from refsam_trt.contract.specs import GraphSpec, TensorSpec
from refsam_trt.errors import InternalError, UsageError

LIMITS = Limits(max_frames=8, max_expressions=64, max_words=32)


def test_without_a_wish_sizes_are_what_the_runtime_and_the_bundle_need():
    sizes = sizes_within(LIMITS)
    assert sizes == Sizes(max_frames=1, max_texts=1, max_expressions=64, max_words=32)
    assert sizes.limits() == Limits(1, 64, 32)


@pytest.mark.parametrize(
    ("name", "value", "largest"),
    [
        ("max_frames", 9, 8),
        ("max_texts", 65, 64),
        ("max_expressions", 65, 64),
        ("max_words", 33, 32),
        ("max_words", 0, 32),
    ],
)
def test_sizes_that_the_graphs_do_not_take_are_refused(name: str, value: int, largest: int):
    option = "--" + name.replace("_", "-")
    expected = f"{option} {value}: the bundle's graphs take 1 to {largest}"
    with pytest.raises(UsageError, match=re.escape(expected)):
        sizes_within(LIMITS, **{name: value})


def test_frames_expressions_and_words_have_profiles():
    specs = refsam.contract(256, 16, "optimised")
    sizes = Sizes(max_frames=2, max_texts=3, max_expressions=8, max_words=20)
    encoder = profiles_for(specs["image_encoder"], sizes)
    assert encoder == {"image": Profile((1, 3, 256, 256), (1, 3, 256, 256), (2, 3, 256, 256))}
    text = profiles_for(specs["text_encoder"], sizes)
    assert text["input_ids"] == Profile((1, 1), (1, 12), (3, 20))
    step = profiles_for(specs["decoder_step"], sizes)
    assert step["text_values"] == Profile((1, 4, 2, 640), (4, 4, 13, 640), (8, 4, 21, 640))
    assert step["has_track"] == Profile((1,), (4,), (8,))
    assert "image_embedding" not in step


def test_the_tuned_size_never_exceeds_the_largest():
    specs = refsam.contract(256, 16, "baseline")
    step = profiles_for(specs["decoder_step"], Sizes(max_expressions=2, max_words=5))
    assert step["word_mask"] == Profile((1, 1), (2, 5), (2, 5))


def test_a_symbol_without_a_size_is_our_bug():
    spec = GraphSpec((TensorSpec("x", "float32", ("Q",), "frame"),), ())
    with pytest.raises(InternalError, match="no size is known for symbol 'Q'"):
        profiles_for(spec, Sizes())

"""Sizes that plans accept: one optimisation profile per graph, from its tensors' symbols.

Scratch memory grows with the largest size and speed is best at the tuned one, so the largest sizes
are the caller's choice within the bundle's limits.
"""

from __future__ import annotations

from dataclasses import dataclass

from refsam_trt.contract.manifest import Limits
from refsam_trt.contract.plan_manifest import Profile
from refsam_trt.contract.specs import GraphSpec
from refsam_trt.errors import InternalError, UsageError

TUNED_EXPRESSIONS = 4
TUNED_WORDS = 12
"""Sizes that kernels are tuned for; referring expressions have 5 to 15 tokens."""


@dataclass(frozen=True)
class Sizes:
    """Largest sizes of the plans.

    Attributes:
        max_frames: frames that are encoded at once; the runtime encodes one.
        max_texts: expressions that are embedded at once; the runtime embeds one.
        max_expressions: expressions that are decoded at once, so at most followed in a video.
        max_words: tokens of an expression, the end token included.
    """

    max_frames: int = 1
    max_texts: int = 1
    max_expressions: int = 64
    max_words: int = 64

    def limits(self) -> Limits:
        """Return what a session may ask of the plans."""
        return Limits(self.max_frames, self.max_expressions, self.max_words)


def sizes_within(
    limits: Limits,
    *,
    max_frames: int | None = None,
    max_texts: int | None = None,
    max_expressions: int | None = None,
    max_words: int | None = None,
) -> Sizes:
    """Return the sizes asked for; None is one frame, one text, and the bundle's limit otherwise.

    Raises:
        UsageError: more than the bundle's graphs take, or less than one.
    """
    asked = {
        "max_frames": (max_frames, 1, limits.max_frames),
        "max_texts": (max_texts, 1, limits.max_expressions),
        "max_expressions": (max_expressions, limits.max_expressions, limits.max_expressions),
        "max_words": (max_words, limits.max_words, limits.max_words),
    }
    for name, (value, _, largest) in asked.items():
        if value is not None and not 1 <= value <= largest:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} {value}: the bundle's graphs take 1 to {largest}")
    return Sizes(
        **{name: default if value is None else value for name, (value, default, _) in asked.items()}
    )


def profiles_for(spec: GraphSpec, sizes: Sizes) -> dict[str, Profile]:
    """Return the profile of every input with a symbol in its dims."""
    symbols = {symbol for tensor in spec.inputs for symbol in tensor.symbols}
    ranges = {symbol: _range(symbol, spec, sizes) for symbol in symbols}
    smallest, tuned, largest = ({s: r[kind] for s, r in ranges.items()} for kind in range(3))
    return {
        tensor.name: Profile(tensor.shape(smallest), tensor.shape(tuned), tensor.shape(largest))
        for tensor in spec.inputs
        if tensor.symbols
    }


def _range(symbol: str, spec: GraphSpec, sizes: Sizes) -> tuple[int, int, int]:
    """Return smallest, tuned-for and largest size of a symbol (`specs.TensorSpec`)."""
    if symbol == "M":
        return 1, 1, sizes.max_frames
    if symbol == "N":
        return 1, min(TUNED_WORDS, sizes.max_words), sizes.max_words
    if symbol != "B":
        raise InternalError(f"no size is known for symbol {symbol!r}")
    if {tensor.scope for tensor in spec.inputs} == {"expression"}:
        return 1, 1, sizes.max_texts
    return 1, min(TUNED_EXPRESSIONS, sizes.max_expressions), sizes.max_expressions

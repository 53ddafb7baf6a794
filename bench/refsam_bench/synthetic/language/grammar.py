"""Words for meanings: synonyms, word orders and articles, so language is no one-hot code."""

import re
from collections.abc import Collection
from typing import Final

from refsam_bench.synthetic.compose import SLICES, Slice
from refsam_bench.synthetic.draws import Draws
from refsam_bench.synthetic.language.meaning import MEASURES, Kind, Meaning
from refsam_bench.synthetic.palette import COLOURS

_NOUNS: Final[dict[str | None, tuple[str, ...]]] = {
    None: ("object", "shape", "thing", "one"),
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "hexagon": ("hexagon",),
    "ring": ("ring", "hoop"),
    "cross": ("cross", "plus sign"),
    "moon": ("moon", "crescent"),
    "heart": ("heart",),
}
_COLOUR_WORDS: Final[dict[str, tuple[str, ...]]] = {
    **{colour: (colour,) for colour in COLOURS},
    "purple": ("purple", "violet"),
    "cyan": ("cyan", "turquoise"),
}
# What stands before the colour, and what may follow the noun instead.
_PATTERN_WORDS: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "plain": (("plain", "solid"), ("without a pattern",)),
    "striped": (("striped",), ("with stripes",)),
    "dotted": (("dotted", "spotted"), ("with dots",)),
    "checkered": (("checkered", "chequered"), ("with a checkered pattern",)),
}

# {it} is the noun phrase without its article, {anchor} the other one with it. Sentences that start
# with "the" keep it most of the time; the others get an article.
_SENTENCES: Final[dict[str | None, tuple[str, ...]]] = {
    None: ("{it}",),
    "largest": ("the largest {it}", "the biggest {it}"),
    "smallest": ("the smallest {it}", "the tiniest {it}"),
    "larger of two": ("the larger {it}", "the bigger {it}"),
    "smaller of two": ("the smaller {it}",),
    "middle": ("{it} in the middle", "{it} in the centre"),
    "leftmost": ("the leftmost {it}", "the {it} furthest to the left"),
    "rightmost": ("the rightmost {it}", "the {it} furthest to the right"),
    "topmost": ("the topmost {it}", "the highest {it}", "the {it} nearest to the top"),
    "bottommost": ("the lowest {it}", "the {it} nearest to the bottom"),
    "left": ("{it} on the left", "{it} on the left side", "{it} in the left half"),
    "right": ("{it} on the right", "{it} on the right side", "{it} in the right half"),
    "top": ("{it} at the top", "{it} in the upper half"),
    "bottom": ("{it} at the bottom", "{it} in the lower half"),
    "left of": ("{it} to the left of {anchor}", "{it} left of {anchor}"),
    "right of": ("{it} to the right of {anchor}", "{it} right of {anchor}"),
    "above": ("{it} above {anchor}", "{it} over {anchor}"),
    "below": ("{it} below {anchor}", "{it} under {anchor}"),
    "nearest": ("the {it} closest to {anchor}", "the {it} nearest to {anchor}"),
    "moves left": ("{it} moving to the left", "{it} that moves left", "{it} going left"),
    "moves right": ("{it} moving to the right", "{it} that moves right", "{it} going right"),
    "moves up": ("{it} moving up", "{it} that moves up", "{it} going up"),
    "moves down": ("{it} moving down", "{it} that moves down", "{it} going down"),
    "stays": ("{it} that is not moving", "{it} that stays still", "{it} standing still"),
    "grows": ("{it} that is growing", "{it} getting bigger", "{it} that grows"),
    "shrinks": ("{it} that is shrinking", "{it} getting smaller", "{it} that shrinks"),
    "leaves": ("{it} that leaves and comes back", "{it} that goes away and returns"),
}
_SENTENCES_AT_FIRST: Final[dict[str | None, tuple[str, ...]]] = {
    None: (
        "{noun} that is {colour} at first",
        "{noun} that starts out {colour}",
        "the initially {colour} {noun}",
    ),
    "left": ("{it} that starts on the left", "{it} that is on the left at first"),
    "right": ("{it} that starts on the right", "{it} that is on the right at first"),
    "top": ("{it} that starts at the top", "{it} that is at the top at first"),
    "bottom": ("{it} that starts at the bottom", "{it} that is at the bottom at first"),
    "largest": ("{it} that is the larger one at first", "{it} that starts out larger"),
    "smallest": ("{it} that is the smaller one at first", "{it} that starts out smaller"),
}
_OF_TWO: Final = {"largest": "larger of two", "smallest": "smaller of two"}


def sentence(draws: Draws, meaning: Meaning, name: Slice, group_size: int) -> str:
    """Return lower-case words for the meaning; other draws say it otherwise.

    Args:
        draws: Where synonyms, word order and articles are drawn from.
        meaning: What is to be said.
        name: Its slice; `track` speaks of the first frames.
        group_size: How many objects in view are of the kind: "the larger" is said of two.
    """
    measure = meaning.measure
    if name == "track":
        choices = _SENTENCES_AT_FIRST[measure]
    else:
        choices = _SENTENCES[_OF_TWO.get(measure or "", measure) if group_size == 2 else measure]
    colour = meaning.kind.colour
    text = draws.pick(choices).format(
        it=_phrase(draws, meaning.kind),
        noun=draws.pick(_NOUNS[meaning.kind.shape]),
        colour="" if colour is None else draws.pick(_COLOUR_WORDS[colour]),
        anchor="" if meaning.anchor is None else "the " + _phrase(draws, meaning.anchor),
    )
    return _with_article(draws, text)


def vocabulary(slices: Collection[Slice] = SLICES) -> tuple[str, ...]:
    """Return every word that an expression of these slices can hold, sorted: for warnings."""
    phrases = ["a an the", *sum(_NOUNS.values(), ()), *sum(_COLOUR_WORDS.values(), ())]
    if "attribute" in slices:
        phrases += [text for places in _PATTERN_WORDS.values() for text in sum(places, ())]
    tables = [
        choices
        for measure, choices in _SENTENCES.items()
        if measure and _slice_of(measure) in slices
    ]
    if "track" in slices:
        tables += _SENTENCES_AT_FIRST.values()
    phrases += [re.sub(r"\{\w+\}", " ", text) for choices in tables for text in choices]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


def _slice_of(measure: str) -> Slice:
    of_two = {said: measure for measure, said in _OF_TWO.items()}
    return MEASURES[of_two.get(measure, measure)].slice


def _phrase(draws: Draws, kind: Kind) -> str:
    """Return the noun phrase without its article: "striped red ball", "red ball with stripes"."""
    words = [draws.pick(_NOUNS[kind.shape])]
    if kind.colour is not None:
        words.insert(0, draws.pick(_COLOUR_WORDS[kind.colour]))
    if kind.pattern is not None:
        before, behind = _PATTERN_WORDS[kind.pattern]
        if draws.chance(0.7):
            words.insert(0, draws.pick(before))
        else:
            words.append(draws.pick(behind))
    return " ".join(words)


def _with_article(draws: Draws, text: str) -> str:
    article = draws.pick(("the", "the", "the", "the", "the", "the", "a", ""))
    if text.startswith("the "):
        return text.removeprefix("the ") if article == "" else text
    if text.startswith("one "):
        article = "the"
    if article == "a" and text[0] in "aeio":
        article = "an"
    return f"{article} {text}".strip()

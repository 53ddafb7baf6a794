"""The words a model was trained on, and a warning about expressions that hold others.

A model trained on few words gives some mask for any word: without a warning, nobody could tell.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable

from refsam_trt.errors import shown

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_MAX_SHOWN = 5
_LOG = logging.getLogger("refsam_trt")


def words_of(expression: str) -> tuple[str, ...]:
    """Return the words of an expression, case-folded, without punctuation, each once."""
    return tuple(dict.fromkeys(_WORD.findall(expression.casefold())))


def unseen_words(vocabulary: Iterable[str] | None, expression: str) -> tuple[str, ...]:
    """Return the words of an expression that are not in the vocabulary; () where there is none."""
    if vocabulary is None:
        return ()
    known = frozenset(vocabulary)
    return tuple(word for word in words_of(expression) if word not in known)


def warn_of_unseen_words(vocabulary: frozenset[str] | None, expression: str) -> None:
    """Log a warning if the expression holds words that were never seen in training."""
    unseen = unseen_words(vocabulary, expression)
    if unseen and vocabulary is not None:
        listed = ", ".join(map(shown, unseen[:_MAX_SHOWN]))
        more = f" and {len(unseen) - _MAX_SHOWN} more" if len(unseen) > _MAX_SHOWN else ""
        _LOG.warning(
            "expression %s: never seen in training: %s%s; do not rely on its masks, or say it in "
            "the %d words of `engine.manifest.vocabulary`",
            shown(expression),
            listed,
            more,
            len(vocabulary),
        )


def vocabulary_problem(vocabulary: tuple[str, ...]) -> str | None:
    """Return what is wrong with a list of words, or None: sorted, each once, each one word."""
    if not vocabulary:
        return "has no word"
    for before, word in zip(("", *vocabulary), vocabulary, strict=False):
        if words_of(word) != (word,):
            return f"has {word[:40]!r}, which is not one word in lower case"
        if before >= word:
            return f"has {word[:40]!r} behind {before[:40]!r}; sorted words expected, each once"
    return None

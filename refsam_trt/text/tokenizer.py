"""Expression -> token ids: clean-up, the tokenizer's file, and what is refused."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from refsam_trt.errors import BundleError, ExpressionError, shown
from refsam_trt.limits import MAX_EXPRESSION_CHARACTERS


class Tokenizer:
    """Cleans expressions up and turns them into token ids (refsam-model 3.1). Never truncates.

    Args:
        source: file of the `tokenizers` library, or its content.
        lowercase: lower-case expressions first.
        max_words: most tokens an expression may have, begin and end tokens included; can be read.

    Raises:
        BundleError: the file cannot be read.
    """

    def __init__(self, source: Path | str, *, lowercase: bool, max_words: int) -> None:
        from tokenizers import Tokenizer as Library

        self._lowercase = lowercase
        self.max_words = max_words
        try:
            is_file = isinstance(source, Path)
            self._library = (Library.from_file if is_file else Library.from_str)(str(source))
        except BaseException as error:
            _raise_unless_of_library(error)
            raise BundleError(f"{source}: not a tokenizer ({error}); export again") from error
        self._library.no_truncation()
        self._library.no_padding()

    def clean(self, expression: str) -> str:
        """Return the expression lower-cased (if so configured), words joined by single blanks.

        Raises:
            ExpressionError: nothing is left, far too long, or a control character.
        """
        if len(expression) > MAX_EXPRESSION_CHARACTERS:
            raise ExpressionError(
                f"expression {shown(expression)} has {len(expression)} characters, "
                f"at most {MAX_EXPRESSION_CHARACTERS} are accepted; shorten it"
            )
        cleaned = tidied(expression, lowercase=self._lowercase)
        if not cleaned:
            raise ExpressionError("the expression is empty; say in words what to look for")
        for character in cleaned:
            # Cc would reach terminals and captions; Cs has no UTF-8 form.
            if unicodedata.category(character) in ("Cc", "Cs"):
                raise ExpressionError(
                    f"expression {shown(expression)} holds the character "
                    f"U+{ord(character):04X}, which is no text; remove it"
                )
        return cleaned

    def encode(self, cleaned: str) -> np.ndarray:
        """Return the token ids of a cleaned-up expression, int64 [N].

        Begin and end tokens, as far as the file asks for them, are part of it.

        Raises:
            ExpressionError: no token but these, more than `max_words`, or characters that the
                file has no token for.
        """
        try:
            encoding = self._library.encode(cleaned)
        except BaseException as error:
            _raise_unless_of_library(error)
            raise ExpressionError(
                f"expression {shown(cleaned)} cannot be cut into tokens ({error}); reword it"
            ) from error
        num_words = len(encoding.ids)
        if sum(encoding.special_tokens_mask) == num_words:
            raise ExpressionError(f"expression {shown(cleaned)} has no word in it; reword it")
        if num_words > self.max_words:
            raise ExpressionError(
                f"expression {shown(cleaned)} has {num_words} tokens, begin and end tokens "
                f"included, at most {self.max_words} are accepted; shorten it"
            )
        return np.array(encoding.ids, np.int64)


def tidied(expression: str, *, lowercase: bool) -> str:
    """Return an expression as the tokenizer gets it (refsam-model 3.1), whatever it holds."""
    return " ".join((expression.lower() if lowercase else expression).split())


def _raise_unless_of_library(error: BaseException) -> None:
    """Let interruptions pass; panics of the Rust code in `tokenizers` are no `Exception` either."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error

"""The tokenizer of ReferDINO: BERT's WordPiece, lower case, with the tokens that end a block (2.2).

A folder of BERT gives the tokenizer and nothing else: ReferDINO has trained BERT's norms, so stock
weights may not stand in for its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from refsam_export.files.tensor_files import describe
from refsam_trt.contract.manifest import Source
from refsam_trt.errors import CheckpointError

PAD, UNKNOWN, BEGIN, END = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
BLOCK_ENDS = (BEGIN, END, ".", "?")
"""Tokens that end a block; the comma does not."""

_FILES = ("tokenizer.json", "vocab.txt")
_PROBE = "A, b?"


@dataclass(frozen=True)
class TokenizerSource:
    """A tokenizer and what of it the model needs to know.

    Attributes:
        tokenizer: adds `[CLS]` and `[SEP]`, never cuts, never pads.
        special_ids: of the tokens that end a block.
        pad_id: of the token that fills up shorter expressions.
        sources: the file that was read, if any.
    """

    tokenizer: Tokenizer
    special_ids: tuple[int, ...]
    pad_id: int
    sources: tuple[Source, ...] = ()


def wordpiece(words: Sequence[str]) -> TokenizerSource:
    """Return the tokenizer of a vocabulary; the id of a word is its place.

    Raises:
        CheckpointError: a token that the model needs is not in it.
    """
    return _checked(_built(words), "the vocabulary")


def read_tokenizer(folder: Path, vocabulary: int) -> TokenizerSource:
    """Read the tokenizer of a Hugging Face folder of `bert-base-uncased`; weights are not read.

    Args:
        folder: with `tokenizer.json`, or with `vocab.txt`, from which one is made.
        vocabulary: tokens that the checkpoint knows.

    Raises:
        CheckpointError: no tokenizer, another kind of one, or of another vocabulary.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; --text-encoder takes a folder of bert-base-uncased"
        )
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(
            f"{folder}: no tokenizer; expected tokenizer.json or vocab.txt of bert-base-uncased"
        )
    source = _checked(_read(path), str(path))
    size = source.tokenizer.get_vocab_size()
    if size != vocabulary:
        raise CheckpointError(
            f"{path}: has {size} tokens, the checkpoint knows {vocabulary}; it belongs to another "
            "model: take the folder of bert-base-uncased"
        )
    description = (describe("tokenizer", path),)
    return TokenizerSource(source.tokenizer, source.special_ids, source.pad_id, description)


def _read(path: Path) -> Tokenizer:
    try:
        if path.name == "tokenizer.json":
            return Tokenizer.from_file(str(path))
        return _built(path.read_text(encoding="utf-8").split("\n"))
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise CheckpointError(f"{path}: not a readable tokenizer: {error}") from error


def _built(words: Sequence[str]) -> Tokenizer:
    words = list(words[:-1]) if words and not words[-1] else list(words)
    vocabulary: Mapping[str, int] = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(WordPiece(dict(vocabulary), unk_token=UNKNOWN))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    ends = [(token, vocabulary[token]) for token in (BEGIN, END) if token in vocabulary]
    if len(ends) == 2:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{BEGIN} $A {END}", pair=f"{BEGIN} $A {END} $B:1 {END}:1", special_tokens=ends
        )
    return tokenizer


def _checked(tokenizer: Tokenizer, where: str) -> TokenizerSource:
    ids = tokenizer.get_vocab()
    if missing := [token for token in (PAD, UNKNOWN, *BLOCK_ENDS) if token not in ids]:
        raise CheckpointError(
            f"{where}: has no token {', '.join(missing)}; take the folder of bert-base-uncased"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    cut = tokenizer.encode(_PROBE)
    is_lower = tokenizer.encode(_PROBE.lower()).ids == cut.ids
    if cut.tokens[0] != BEGIN or cut.tokens[-2:] != ["?", END] or not is_lower:
        raise CheckpointError(
            f"{where}: cuts {_PROBE!r} into {cut.tokens}; expected a lower-case WordPiece "
            f"tokenizer that adds {BEGIN} and {END}: take the folder of bert-base-uncased"
        )
    return TokenizerSource(tokenizer, tuple(ids[token] for token in BLOCK_ENDS), ids[PAD])

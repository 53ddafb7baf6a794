"""Small tokenizers of the three kinds that text encoders come with, trained on given texts.

Each is a Hugging Face folder without `tokenizer.json`, as its first authors published it, and has a
twin that shares no code with the `tokenizers` library.
"""

import io
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import regex
import sentencepiece
from fake_bundle import byte_letters
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

Encode = Callable[[str], list[int]]
Merges = dict[tuple[str, str], int]
VOCAB_SIZE = 600
_BYTE_LETTERS = byte_letters()
GPT2_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # RoBERTa's too
)
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def write_t5(folder: Path, texts: Iterable[str]) -> Encode:
    """Write `spiece.model`, a unigram model with T5's ids; return SentencePiece itself."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        vocab_size=VOCAB_SIZE,
        model_type="unigram",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=logging.WARNING,
    )
    (folder / "spiece.model").write_bytes(written.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    return lambda text: [*processor.encode(text), 1]


def write_roberta(folder: Path, texts: Iterable[str]) -> Encode:
    """Write `vocab.json` and `merges.txt` of a byte-level BPE, RoBERTa's special tokens first."""
    merges = _merges(texts, GPT2_WORDS, suffix="")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *_BYTE_LETTERS, *map("".join, merges), "<mask>"]
    ids = _write(folder, pieces, merges)
    split = regex.compile(GPT2_WORDS)

    def encode(text: str) -> list[int]:
        words = split.findall(text)
        return [0, *(ids[piece] for word in words for piece in _bpe(_letters(word), merges)), 2]

    return encode


def write_clip(folder: Path, texts: Iterable[str]) -> Encode:
    """Write `vocab.json` and `merges.txt` of CLIP's BPE: `</w>` ends words, text is lower-cased."""
    merges = _merges((text.lower() for text in texts), CLIP_WORDS, suffix="</w>")
    endings = [f"{letter}</w>" for letter in _BYTE_LETTERS]
    special = ["<|startoftext|>", "<|endoftext|>"]
    ids = _write(folder, [*_BYTE_LETTERS, *endings, *map("".join, merges), *special], merges)
    split = regex.compile(CLIP_WORDS)

    def encode(text: str) -> list[int]:
        found = [ids[special[0]]]
        for word in split.findall(text.lower()):
            *first, last = _letters(word)
            found += [ids[piece] for piece in _bpe([*first, f"{last}</w>"], merges)]
        return [*found, ids[special[1]]]

    return encode


def _merges(texts: Iterable[str], words: str, suffix: str) -> Merges:
    """Learn which pairs to merge, the most useful first."""
    learner = Tokenizer(models.BPE(end_of_word_suffix=suffix))
    cut = pre_tokenizers.Split(Regex(words), behavior="removed", invert=True)
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    learner.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, end_of_word_suffix=suffix, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return {(first, second): rank for rank, (first, second) in enumerate(merges)}


def _write(folder: Path, pieces: Sequence[str], merges: Merges) -> dict[str, int]:
    ids = {piece: index for index, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return ids


def _letters(word: str) -> list[str]:
    return [_BYTE_LETTERS[byte] for byte in word.encode()]


def _bpe(pieces: list[str], merges: Merges) -> list[str]:
    """Merge the pair that was learned first, everywhere, until none of the pairs was learned."""
    while True:
        pairs = {pair for pair in pairwise(pieces) if pair in merges}
        if not pairs:
            return pieces
        best = min(pairs, key=merges.__getitem__)
        merged: list[str] = []
        for piece in pieces:
            if merged and (merged[-1], piece) == best:
                merged[-1] += piece
            else:
                merged.append(piece)
        pieces = merged

"""Learns the tokenizer of `nano` and `tiny`: sub-words of a small word list, bytes for all else.

It behaves like T5's (word-boundary marks, end token, no prefix), so the same runtime code serves
both. It is deterministic: `python -m refsam_prove.nano_tokenizer` writes the file in the package
again.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from refsam_export.text.encoders import ASSET, VOCAB_SIZE

# The word list begins with the words that referring expressions are made of: they become whole
# tokens, later lines (people, animals, vehicles) share what is left.
FREQUENT_LINES, FREQUENT_WEIGHT = 8, 8
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
_WORDS = Path(__file__).with_name("nano_words.txt")


def build_tokenizer() -> Tokenizer:
    """Learn byte-pair merges from the word list and put bytes and special tokens before them."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    fixed = [*SPECIAL_TOKENS, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(fixed),
        min_frequency=1,
        show_progress=False,
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789'-,."),
    )
    lines = _WORDS.read_text(encoding="utf-8").splitlines()
    corpus = lines[:FREQUENT_LINES] * FREQUENT_WEIGHT + lines[FREQUENT_LINES:]
    learner.train_from_iterator(corpus, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = sorted(learned["vocab"], key=learned["vocab"].__getitem__)
    vocab = {piece: index for index, piece in enumerate([*fixed, *pieces])}
    merges = [tuple(pair) for pair in learned["merges"]]

    tokenizer = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


if __name__ == "__main__":
    build_tokenizer().save(str(Path(str(ASSET))))

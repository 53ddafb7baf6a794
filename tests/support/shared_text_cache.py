"""Work on a disk cache of text embeddings that several processes do at once."""

import logging
from pathlib import Path

import numpy as np
from runtime_twin import assert_same_embedding, random_embedding

from refsam_trt.contract.refsam import TEXT_ENCODER, contract
from refsam_trt.text.disk import TextDiskCache, TextKey

KEY = TextKey(tokenizer="a" * 64, text_graph="b" * 64, backend="ort-cpu")
TENSORS = contract(32, 2, "optimised")[TEXT_ENCODER].outputs
TEXTS = ("one", "two", "three", "four", "five")


def put_and_get(cache: TextDiskCache, seed: int) -> None:
    """Put and get the same few texts, each time in another order; whatever is found is whole."""
    for index in np.random.default_rng(seed).integers(0, len(TEXTS), 40).tolist():
        found = cache.get(TEXTS[index], num_words=4)
        if found is None:
            cache.put(TEXTS[index], random_embedding(4, index))
        else:
            assert_same_embedding(found, random_embedding(4, index))


def work_in_a_process(folder: Path, seed: int) -> None:
    """Do `put_and_get` and fail if anything was logged."""
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("refsam_trt").addHandler(handler)
    put_and_get(TextDiskCache(folder, KEY, TENSORS), seed)
    assert not said

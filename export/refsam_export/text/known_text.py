"""Expressions known at export: checked, embedded by the exported text graph, kept in the bundle.

With them a device needs no text encoder at all: it may be left out of the bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from refsam_trt.backends.ort import OrtCpuBackend
from refsam_trt.bundle.open import Bundle
from refsam_trt.contract.manifest import Manifest
from refsam_trt.contract.refsam import TEXT_ENCODER
from refsam_trt.errors import ExpressionError
from refsam_trt.text.cache import write_text_cache
from refsam_trt.text.encoder import TextEncoder
from refsam_trt.text.tokenizer import Tokenizer

TEXT_CACHE = "text_cache.safetensors"


def clean_expressions(
    file: str, lines: Sequence[tuple[int, str]], tokenizer: Tokenizer
) -> tuple[str, ...]:
    """Return the lines of a file cleaned up, each expression once, in the file's order.

    Args:
        file: for the error's text.
        lines: number and text of each (`read_expressions`).
        tokenizer: the bundle's.

    Raises:
        ExpressionError: a line that no session could use; the text says which.
    """
    expressions: dict[str, None] = {}
    for number, text in lines:
        try:
            cleaned = tokenizer.clean(text)
            tokenizer.encode(cleaned)
        except ExpressionError as error:
            raise ExpressionError(f"{file}, line {number}: {error}") from error
        expressions[cleaned] = None
    return tuple(expressions)


def write_known_expressions(
    path: Path, bundle: Bundle, tokenizer: Tokenizer, expressions: Sequence[str]
) -> None:
    """Write a text cache with what the runtime would compute, bit for bit on the same machine.

    Args:
        path: the file.
        bundle: has a variant whose text encoder is in fp32.
        tokenizer: the bundle's.
        expressions: cleaned up.

    Raises:
        BackendError: the text graph overflowed.
        OutputError: the file cannot be written.
    """
    entries = [variant.graphs[TEXT_ENCODER] for variant in bundle.manifest.variants.values()]
    entry = next(entry for entry in entries if entry.precision == "fp32")
    backend = OrtCpuBackend()
    encoder = TextEncoder(
        tokenizer,
        backend,
        entry.spec.outputs,
        load_graph=lambda: backend.load(bundle.verify_file(entry.file), entry.spec),
    )
    write_text_cache(path, {text: encoder.encode(text)[1] for text in expressions})


def without_text_encoder(
    manifest: Manifest, external_data: Callable[[str], Sequence[str]]
) -> tuple[Manifest, set[str]]:
    """Return the manifest without text graphs, and the files of the bundle that only they need.

    `external_data` is `Bundle.external_data`.
    """
    variants, files = {}, set[str]()
    for name, variant in manifest.variants.items():
        graphs = dict(variant.graphs)
        file = graphs.pop(TEXT_ENCODER).file
        files |= {file, *external_data(file)}
        variants[name] = msgspec.structs.replace(variant, graphs=graphs)
    return msgspec.structs.replace(manifest, variants=variants), files

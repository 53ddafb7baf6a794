"""Manifest on disk -> `Manifest` and bundle id. Every way it can be wrong has its own text.

Looks at the manifest alone; whether the other files are as it says is `bundle`'s.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from refsam_trt import limits
from refsam_trt.bundle.folder import COPY_AGAIN, HASH_FILE, MANIFEST_FILE, unreadable
from refsam_trt.contract.manifest import SCHEMA_VERSION, Manifest, bundle_id
from refsam_trt.errors import BundleError, UsageError

_HEX_DIGEST = re.compile("[0-9a-f]{64}")


class _Header(msgspec.Struct):
    schema_version: int


def read_manifest(folder: Path, expect_id: str | None) -> tuple[Manifest, str]:
    """Read `manifest.json` of a bundle and check it against `manifest.sha256` and `expect_id`.

    Returns:
        The manifest and the bundle id.

    Raises:
        BundleError: missing, too large or altered, not JSON, of another schema, not canonical, or
            another bundle than expected.
        UsageError: `expect_id` is no bundle id.
    """
    if expect_id is not None and not is_digest(expect_id):
        raise UsageError(
            f"expect_id {expect_id!r} is no bundle id: 64 lower-case hexadecimal digits expected, "
            f"as in the bundle's {HASH_FILE}"
        )
    path = folder / MANIFEST_FILE
    raw = _read_bounded(path, limits.MAX_MANIFEST_BYTES)
    found_id = bundle_id(raw)
    _check_hash(folder / HASH_FILE, found_id)
    if expect_id is not None and found_id != expect_id:
        raise BundleError(
            f"{folder}: this is bundle {found_id}, expected was {expect_id}; "
            "give the right bundle, or do not expect a certain one"
        )
    return _decode(path, raw), found_id


def is_digest(text: str) -> bool:
    """Say whether a text is a SHA-256 as we write it: 64 lower-case hexadecimal digits."""
    return _HEX_DIGEST.fullmatch(text) is not None


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise BundleError(f"{path}: missing; {COPY_AGAIN}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    if len(raw) > max_bytes:
        raise BundleError(f"{path}: more than {max_bytes} bytes; {COPY_AGAIN}")
    return raw


def _check_hash(path: Path, found_id: str) -> None:
    text = _read_bounded(path, 4096).decode("ascii", "replace")
    written_id = text.removesuffix("\n")
    if not is_digest(written_id):
        raise BundleError(
            f"{path}: holds {text[:80]!r}, 64 lower-case hexadecimal digits expected; {COPY_AGAIN}"
        )
    if written_id != found_id:
        raise BundleError(
            f"{path}: the SHA-256 of {MANIFEST_FILE} is {found_id}, written down is {written_id}: "
            f"one of the two files was altered; {COPY_AGAIN}"
        )


def _decode(path: Path, raw: bytes) -> Manifest:
    try:
        version = msgspec.json.decode(raw, type=_Header).schema_version
        if version == SCHEMA_VERSION:
            manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.ValidationError, UsageError) as error:
        raise BundleError(
            f"{path}: not a manifest of schema {SCHEMA_VERSION}: {error}; export the bundle anew"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not JSON ({error}); {COPY_AGAIN}") from error
    except RecursionError as error:
        raise _too_deep(path) from error
    if version != SCHEMA_VERSION:
        raise _other_schema(path, version)
    quantised = manifest.quantisation
    opaque = (manifest.configuration, manifest.parity, quantised.record if quantised else None)
    if _is_deeper(opaque, limits.MAX_JSON_DEPTH):
        raise _too_deep(path)
    if manifest.to_bytes() != raw:
        raise BundleError(
            f"{path}: not in canonical form (see docs/format/bundle.md): the bundle id would "
            "depend on how it is written; export the bundle anew"
        )
    return manifest


def _other_schema(path: Path, version: int) -> BundleError:
    if version > SCHEMA_VERSION:
        problem, remedy = "made by a newer refsam_trt", "update refsam_trt"
    else:
        problem, remedy = "made by an older refsam_trt", "export the bundle anew"
    return BundleError(
        f"{path}: schema version {version}, {SCHEMA_VERSION} expected: {problem}; {remedy}"
    )


def _too_deep(path: Path) -> BundleError:
    return BundleError(
        f"{path}: values nested more than {limits.MAX_JSON_DEPTH} deep; export the bundle anew"
    )


def _is_deeper(value: Any, num_levels: int) -> bool:
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return False
    return num_levels == 0 or any(_is_deeper(item, num_levels - 1) for item in value)

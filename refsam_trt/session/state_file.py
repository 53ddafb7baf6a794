"""The file a session is saved in: track tokens, and JSON that says what they belong to.

One safetensors file; its metadata entry `refsam_state` is the JSON form of `SavedSession`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np

from refsam_trt.errors import StateError
from refsam_trt.files.atomic import atomic_path
from refsam_trt.limits import MAX_STATE_BYTES
from refsam_trt.session.expressions import Expressions
from refsam_trt.session.model import SessionModel

METADATA_KEY = "refsam_state"
SCHEMA = 1


class SavedExpression(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An expression and its id; ids are never used twice in a session."""

    id: int
    text: str


class SavedSession(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a saved session was: the model it ran on, and where it stood.

    `expressions` are in the order of the token rows; `frame_hw` is None before the first frame.
    """

    schema: int
    bundle_id: str
    variant: str
    precision: str
    expressions: tuple[SavedExpression, ...]
    next_expression_id: int
    num_frames: int
    frame_hw: tuple[int, int] | None


def described(
    model: SessionModel, table: Expressions, num_frames: int, frame_hw: tuple[int, int] | None
) -> SavedSession:
    """Return what a state file says of a session besides its tensors."""
    return SavedSession(
        schema=SCHEMA,
        bundle_id=model.bundle_id,
        variant=model.variant,
        precision=model.precision,
        expressions=tuple(SavedExpression(row.id, row.text) for row in table.rows),
        next_expression_id=table.next_id,
        num_frames=num_frames,
        frame_hw=frame_hw,
    )


def write_state(path: Path, saved: SavedSession, tensors: dict[str, np.ndarray]) -> None:
    """Write a state file, whole or not at all."""
    from safetensors.numpy import save

    dense = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    content = save(dense, {METADATA_KEY: msgspec.json.encode(saved).decode()})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def read_state(path: Path) -> tuple[SavedSession, dict[str, np.ndarray]]:
    """Read a state file and check all that can be checked without a session.

    Raises:
        StateError: absent, damaged, too large, of another schema, or contradicting itself.
    """
    from safetensors import safe_open

    try:
        if path.stat().st_size > MAX_STATE_BYTES:
            raise StateError(f"over {MAX_STATE_BYTES} bytes")
        with safe_open(path, framework="numpy") as file:
            raw = (file.metadata() or {})[METADATA_KEY]
            # First the schema alone: another one has other fields, which is not damage.
            if (schema := msgspec.json.decode(raw, type=_Schema).schema) != SCHEMA:
                raise StateError(f"schema {schema}, this version reads {SCHEMA}")
            saved = msgspec.json.decode(raw, type=SavedSession)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises classes of its own, by version
        reason = str(error) if isinstance(error, StateError) else f"{type(error).__name__}: {error}"
        raise StateError(f"{path}: not a session state ({reason}); save it again") from error
    _check(path, saved, tensors)
    return saved, tensors


def refuse_other(
    path: Path, saved: SavedSession, current: SessionModel, declared_hw: tuple[int, int] | None
) -> None:
    """Refuse a state that was saved on another model or with frames of another size.

    Args:
        path: of the state, for the message.
        saved: what the file says.
        current: what the session that reads it runs.
        declared_hw: size of the frames that the session was opened for, None for any.

    Raises:
        StateError: another bundle, variant, precision, or size than the declared one.
    """
    for label, there, here in (
        ("bundle", saved.bundle_id, current.bundle_id),
        ("variant", saved.variant, current.variant),
        ("precision", saved.precision, current.precision),
    ):
        if there != here:
            raise StateError(
                f"{path}: saved with {label} {there}, this engine has {here}; load the {label} "
                "it was saved with"
            )
    if declared_hw and saved.frame_hw and declared_hw != saved.frame_hw:
        raise StateError(
            f"{path}: saved from frames of {saved.frame_hw}, this video was opened for "
            f"{declared_hw} (height, width)"
        )


class _Schema(msgspec.Struct, frozen=True):
    schema: int


def _check(path: Path, saved: SavedSession, tensors: Mapping[str, np.ndarray]) -> None:
    ids = [expression.id for expression in saved.expressions]
    is_sound = (
        len(set(ids)) == len(ids)
        and all(0 <= id_ < saved.next_expression_id for id_ in ids)
        and saved.num_frames >= 0
        and (saved.frame_hw is None or min(saved.frame_hw) > 0)
    )
    if not is_sound:
        raise StateError(f"{path}: ids, frame counter or frame size make no sense; save it again")
    for name, tensor in tensors.items():
        if tensor.shape[:1] != (len(ids),):
            raise StateError(
                f"{path}: tensor {name!r} {list(tensor.shape)}, expected a row for each of "
                f"{len(ids)} expressions; save it again"
            )

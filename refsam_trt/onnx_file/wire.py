"""A bounded reader of protobuf's wire format: fields of a message, without a schema.

Knows nothing of any message type and copies nothing but the strings asked for. Stricter than
protobuf where a lenient reading could hide something from us that another parser sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol, overload

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_MAX_TAG = 2**32


class WireError(Exception):
    """The bytes are not a message within the limits; the text says what is wrong and where."""


class Bytes(Protocol):
    """What is read: `bytes`, or an `mmap` of a file."""

    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, index: int, /) -> int: ...
    @overload
    def __getitem__(self, index: slice, /) -> bytes: ...


class Span(NamedTuple):
    """Where the bytes of a message lie: from `start` up to, not including, `stop`."""

    start: int
    stop: int


class Field(NamedTuple):
    """One field: of a varint its value, of any other type where its bytes lie."""

    number: int
    wire_type: int
    value: int
    span: Span


class WireReader:
    """Reads the fields of messages in `data`, at most `max_fields` over its lifetime."""

    def __init__(self, data: Bytes, *, max_fields: int, max_string_bytes: int) -> None:
        self._data = data
        self._max_fields = max_fields
        self._max_string_bytes = max_string_bytes
        self._num_fields = 0

    def root(self) -> Span:
        """Return the span of the whole data."""
        return Span(0, len(self._data))

    def fields(self, span: Span) -> Iterator[Field]:
        """Yield the fields of the message at `span`, in file order.

        Raises:
            WireError: a truncated or over-long number, a length beyond the message, a field number
                or wire type that protobuf 3 does not have, or more fields than allowed.
        """
        position, stop = span
        while position < stop:
            self._num_fields += 1
            if self._num_fields > self._max_fields:
                raise WireError(f"more than {self._max_fields} fields")
            start = position
            tag, position = self._varint(position, stop)
            number, wire_type = tag >> 3, tag & 7
            if number == 0 or tag >= _MAX_TAG:
                raise WireError(f"field number {number} at byte {start}")
            value = 0
            if wire_type == VARINT:
                begin = position
                value, position = self._varint(position, stop)
            else:
                begin, position = self._payload(wire_type, position, stop)
            yield Field(number, wire_type, value, Span(begin, position))

    def message(self, field: Field) -> Span:
        """Return the span of a field that holds a message or a string."""
        if field.wire_type != LENGTH:
            raise WireError(
                f"field {field.number} at byte {field.span.start} has wire type "
                f"{field.wire_type} where {LENGTH} is expected"
            )
        return field.span

    def integer(self, field: Field) -> int:
        """Return the value of a field that holds an int64, an int32 or an enumeration."""
        if field.wire_type != VARINT:
            raise WireError(
                f"field {field.number} at byte {field.span.start} has wire type "
                f"{field.wire_type} where {VARINT} is expected"
            )
        return field.value - 2**64 if field.value >= 2**63 else field.value

    def integers(self, field: Field) -> list[int]:
        """Return what one field of repeated int64 holds: one of them, or many packed."""
        if field.wire_type == VARINT:
            return [self.integer(field)]
        position, stop = self.message(field)
        found = []
        while position < stop:
            self._num_fields += 1
            if self._num_fields > self._max_fields:
                raise WireError(f"more than {self._max_fields} fields")
            value, position = self._varint(position, stop)
            found.append(value - 2**64 if value >= 2**63 else value)
        return found

    def text(self, field: Field) -> str:
        """Return the value of a field that holds a string."""
        start, stop = self.message(field)
        if stop - start > self._max_string_bytes:
            raise WireError(
                f"a string of {stop - start} bytes at byte {start}, more than the "
                f"{self._max_string_bytes} allowed"
            )
        try:
            return self._data[start:stop].decode()
        except UnicodeDecodeError as error:
            raise WireError(f"a string at byte {start} is not UTF-8") from error

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= stop:
                raise WireError(f"a number is cut off at byte {position}")
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
        raise WireError(f"a number of more than 10 bytes before byte {position}")

    def _payload(self, wire_type: int, position: int, stop: int) -> tuple[int, int]:
        if wire_type == LENGTH:
            num_bytes, position = self._varint(position, stop)
        elif wire_type in _FIXED_BYTES:
            num_bytes = _FIXED_BYTES[wire_type]
        else:
            raise WireError(f"wire type {wire_type} before byte {position}")
        if num_bytes > stop - position:
            raise WireError(
                f"{num_bytes} bytes announced at byte {position}, {stop - position} left"
            )
        return position, position + num_bytes

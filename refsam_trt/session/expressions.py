"""The expressions of a session: one table, which is replaced and never changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from refsam_trt.errors import UsageError
from refsam_trt.families.base import Row


@dataclass(frozen=True)
class Expressions:
    """Rows in the order in which they were added; ids below `next_id` are never used again."""

    rows: tuple[Row, ...] = ()
    next_id: int = 0

    @property
    def texts(self) -> dict[int, str]:
        """Id -> cleaned-up text."""
        return {row.id: row.text for row in self.rows}

    def with_added(self, text: str, embedding: Any) -> Expressions:
        """Return the table with one row more."""
        return Expressions((*self.rows, Row(self.next_id, text, embedding)), self.next_id + 1)

    def without(self, expression_id: int) -> Expressions:
        """Return the table without a row.

        Raises:
            UsageError: there is no such row.
        """
        self.check_has(expression_id)
        return Expressions(tuple(r for r in self.rows if r.id != expression_id), self.next_id)

    def check_has(self, expression_id: int) -> None:
        """Refuse an id that no row has.

        Raises:
            UsageError: as said.
        """
        if expression_id not in self.texts:
            known = ", ".join(map(str, self.texts)) or "none"
            raise UsageError(f"no expression has the id {expression_id!r}; ids in use: {known}")

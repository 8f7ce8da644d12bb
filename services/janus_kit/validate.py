"""Field validators that collect every violation before they refuse.

A servicer's decoder runs them over a request and calls ``done`` once, so that
a caller learns of all mistakes at the same time::

    check = Violations()
    check.id("thread_id", request.thread_id)
    check.length("text", request.text, at_least=1, at_most=32_768)
    check.done()
"""

import math
from collections.abc import Collection, Sized

from janus_kit.errors import FieldViolation, InvalidArgument
from janus_kit.ids import ID_RULE, is_id

# A thousand bad items need not all be listed for the caller to see the pattern.
_MAX_LISTED = 50


class Violations:
    """The broken rules found so far."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def __bool__(self) -> bool:
        return bool(self.found)

    def add(self, field: str, rule: str) -> None:
        """Record a broken rule."""
        if len(self.found) < _MAX_LISTED:
            self.found.append(FieldViolation(field, rule))

    def require(self, condition: bool, field: str, rule: str) -> bool:
        """Record the rule unless the condition holds; returns the condition."""
        if not condition:
            self.add(field, rule)
        return condition

    def id(self, field: str, text: str, *, optional: bool = False) -> bool:
        """An id or name; empty is allowed only when ``optional``."""
        return self.require((optional and not text) or is_id(text), field, ID_RULE)

    def length(self, field: str, text: str, *, at_least: int = 0, at_most: int) -> bool:
        """Text of so many characters, without NUL, which no store can hold."""
        if "\x00" in text:
            self.add(field, "must not contain NUL characters")
            return False
        return self.require(
            at_least <= len(text) <= at_most,
            field,
            f"must be {at_least} to {at_most} characters" if at_least else _at_most(at_most),
        )

    def size(self, field: str, data: bytes, *, at_least: int = 0, at_most: int) -> bool:
        """So many bytes."""
        return self.require(at_least <= len(data) <= at_most, field, f"must be {at_least} to {at_most} bytes")

    def count(self, field: str, items: Sized, *, at_least: int = 0, at_most: int) -> bool:
        """A repeated or map field of so many items."""
        return self.require(at_least <= len(items) <= at_most, field, f"must have {at_least} to {at_most} items")

    def between(self, field: str, number: float, at_least: float, at_most: float, unit: str = "") -> bool:
        """A finite number within bounds, both included."""
        suffix = f" {unit}" if unit else ""
        return self.require(
            math.isfinite(number) and at_least <= number <= at_most,
            field,
            f"must be between {at_least:.15g} and {at_most:.15g}{suffix}",
        )

    def one_of(self, field: str, value: str, allowed: Collection[str]) -> bool:
        """One of a few names."""
        return self.require(value in allowed, field, f"must be one of {', '.join(sorted(allowed))}")

    def specified(self, field: str, number: int, known: Collection[int]) -> bool:
        """An enum value that is set and that this version knows."""
        return self.require(number != 0 and number in known, field, "must be set to a value of the enum")

    def present(self, field: str, is_set: bool) -> bool:
        """A message or oneof that must be set."""
        return self.require(is_set, field, "must be set")

    def done(self) -> None:
        """Raise InvalidArgument when anything was found."""
        if self.found:
            raise InvalidArgument.of(self.found)


def _at_most(characters: int) -> str:
    return f"must be at most {characters} characters"

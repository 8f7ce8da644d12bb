"""Context variables that have a value within a block."""

from contextvars import ContextVar, Token
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Scoped(Generic[_Value]):
    """``with Scoped(variable, value):`` puts back what was there when the block ends.

    A class, where a generator would do: every call enters several.
    """

    __slots__ = ("_token", "_value", "_variable")

    def __init__(self, variable: ContextVar[_Value], value: _Value) -> None:
        self._variable = variable
        self._value = value

    def __enter__(self) -> None:
        self._token: Token[_Value] = self._variable.set(self._value)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._variable.reset(self._token)

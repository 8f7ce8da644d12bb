"""Requests for any RPC, made from its descriptor and from values for its fields' names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

UNSET = object()
"""A value that leaves its field unset."""

_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
}
_FLOATS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}


class NoValue(AssertionError):
    """A field that nobody said a value for."""


def kind_of(message: Descriptor) -> type[Message]:
    return message_factory.GetMessageClass(message)


def requests(method: MethodDescriptor, values: Mapping[str, Any]) -> list[Message]:
    """What a client sends, with every field set: of a oneof the first, or, streaming, one message for each of them.

    ``values`` are looked up by the end of a field's path, such as `name`,
    `space.name` or `PutSpace.space.name`; the longest that is there counts.
    Numbers, enums and flags need none. Raises NoValue for a text without one.
    """
    request = method.input_type
    parts = [part for oneof in request.oneofs for part in oneof.fields] if method.client_streaming else []
    return [_message(request, method.name, values, (), part) for part in parts or [None]]


def _message(
    kind: Descriptor,
    path: str,
    values: Mapping[str, Any],
    above: tuple[Descriptor, ...],
    chosen: FieldDescriptor | None = None,
) -> Message:
    made = kind_of(kind)()
    for field in kind.fields:
        oneof = field.containing_oneof
        if chosen is not None and field is not chosen:
            continue
        # The first of a oneof, unless it is chosen. `optional` is one of its own.
        if chosen is None and oneof is not None and field is not oneof.fields[0]:
            continue
        _fill(made, field, f"{path}.{field.name}", values, (*above, kind))
    return made


def _fill(
    made: Message, field: FieldDescriptor, path: str, values: Mapping[str, Any], above: tuple[Descriptor, ...]
) -> None:
    value = _said(path, values)
    is_message = field.message_type is not None
    if is_message and not isinstance(value, Message) and value is not UNSET:
        # `space` may be a name here and a message there.
        value = None
    if value is None:
        if is_message:
            if field.message_type in above:
                return
            value = _message(field.message_type, path, values, above)
        else:
            value = _plain(field, path)
    if value is UNSET:
        return
    if field.is_repeated:
        many = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
        getattr(made, field.name).extend(many)
    elif is_message:
        getattr(made, field.name).CopyFrom(value)
    else:
        setattr(made, field.name, value)


def _said(path: str, values: Mapping[str, Any]) -> Any:
    """What is said for the longest end of the path; None: nothing."""
    names = path.split(".")
    ends = (".".join(names[start:]) for start in range(len(names)))
    return next((values[end] for end in ends if end in values), None)


def _plain(field: FieldDescriptor, path: str) -> Any:
    if field.cpp_type in _INTEGERS:
        return 10
    if field.cpp_type in _FLOATS:
        return 0.5
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    if field.enum_type is not None:
        return next(value.number for value in field.enum_type.values if value.number)
    raise NoValue(f"no value for the field {path}: say one where the values of fields are")


@dataclass(frozen=True)
class Leaf:
    """A value somewhere in a message: what it is, and how to take it out or put another in."""

    field: FieldDescriptor
    clear: Callable[[], None]
    put: Callable[[Any], None]


def leaves(message: Message) -> Iterator[Leaf]:
    """Every value that is set, messages included."""
    for field, value in message.ListFields():
        clear = _clearing(message, field.name)
        if field.message_type is not None:
            for each in value if field.is_repeated else [value]:
                yield from leaves(each)
            yield Leaf(field, clear, lambda _, clear=clear: clear())
        elif field.is_repeated:
            yield Leaf(field, clear, lambda new, value=value: value.__setitem__(0, new) if value else None)
        else:
            yield Leaf(field, clear, lambda new, name=field.name: setattr(message, name, new))


def _clearing(message: Message, name: str) -> Callable[[], None]:
    return lambda: message.ClearField(name)  # type: ignore[arg-type]

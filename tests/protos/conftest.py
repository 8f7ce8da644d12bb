"""The contract as descriptors with comments, made by the repository's own generator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

# Registers the extension `scope`, so that parsing the image fills it in.
from janus_api.common.v1 import scope_pb2  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Element:
    """One thing that the contract declares."""

    name: str  # full, e.g. `janus.content.v1.Message.role`
    proto: Any
    comment: str  # its leading comment; empty when there is none


class Contract:
    """Every element of the `janus.*` files of a descriptor image, by kind."""

    def __init__(self, image: FileDescriptorSet) -> None:
        self.files: list[FileDescriptorProto] = [f for f in image.file if f.name.startswith("janus/")]
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.fields: dict[str, FieldDescriptorProto] = {}
        self.methods: dict[str, MethodDescriptorProto] = {}
        self.elements: list[Element] = []
        for file in self.files:
            comments = {tuple(at.path): at.leading_comments for at in file.source_code_info.location}
            for name, proto, path in _walk(file):
                self.elements.append(Element(name, proto, comments.get(path, "").strip()))
                self._sort_in(name, proto)

    def _sort_in(self, name: str, proto: Any) -> None:
        kinds: tuple[tuple[type, dict[str, Any]], ...] = (
            (DescriptorProto, self.messages),
            (EnumDescriptorProto, self.enums),
            (FieldDescriptorProto, self.fields),
            (MethodDescriptorProto, self.methods),
        )
        for kind, known in kinds:
            if isinstance(proto, kind):
                known[name] = proto

    def comment(self, name: str) -> str:
        return next(element.comment for element in self.elements if element.name == name)

    def message(self, type_name: str) -> DescriptorProto:
        """The message that a field's or method's type name, `.janus.…`, refers to."""
        return self.messages[type_name.removeprefix(".")]


def _walk(file: FileDescriptorProto) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    """Full name, descriptor and source path of everything a file declares."""
    for i, message in enumerate(file.message_type):
        yield from _walk_message(f"{file.package}.{message.name}", message, (4, i))
    for i, enum in enumerate(file.enum_type):
        yield from _walk_enum(f"{file.package}.{enum.name}", enum, (5, i))
    for i, service in enumerate(file.service):
        yield f"{file.package}.{service.name}", service, (6, i)
        for j, method in enumerate(service.method):
            yield f"{file.package}.{service.name}.{method.name}", method, (6, i, 2, j)
    for i, extension in enumerate(file.extension):
        yield f"{file.package}.{extension.name}", extension, (7, i)


def _walk_message(
    name: str, message: DescriptorProto, path: tuple[int, ...]
) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    if message.options.map_entry:
        return
    yield name, message, path
    # The compiler puts every `optional` field into a oneof of its own, which nobody wrote.
    invented = {field.oneof_index for field in message.field if field.proto3_optional}
    for i, field in enumerate(message.field):
        yield f"{name}.{field.name}", field, (*path, 2, i)
    for i, nested in enumerate(message.nested_type):
        yield from _walk_message(f"{name}.{nested.name}", nested, (*path, 3, i))
    for i, enum in enumerate(message.enum_type):
        yield from _walk_enum(f"{name}.{enum.name}", enum, (*path, 4, i))
    for i, oneof in enumerate(message.oneof_decl):
        if i not in invented:
            yield f"{name}.{oneof.name}", oneof, (*path, 8, i)


def _walk_enum(
    name: str, enum: EnumDescriptorProto, path: tuple[int, ...]
) -> Iterator[tuple[str, Any, tuple[int, ...]]]:
    yield name, enum, path
    for i, value in enumerate(enum.value):
        yield f"{name}.{value.name}", value, (*path, 2, i)


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    file = tmp_path_factory.mktemp("protos") / "image.binpb"
    command = [sys.executable, str(ROOT / "protos" / "generate.py"), "--image", str(file)]
    subprocess.run(command, check=True)
    return Contract(FileDescriptorSet.FromString(file.read_bytes()))


@pytest.fixture
def python() -> Callable[[str], str]:
    """Run a program in a fresh interpreter; gives what it prints."""

    def run(program: str) -> str:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run

"""The Python code that the contract generates."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from google.protobuf.descriptor import FileDescriptor

import janus_api

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Contract

FOLDER = Path(janus_api.__file__).parent
MODULES = sorted(
    ".".join(("janus_api", *path.relative_to(FOLDER).with_suffix("").parts)) for path in FOLDER.rglob("*_pb2*.py")
)


def test_every_module_imports_and_keeps_its_wire_package(contract: Contract) -> None:
    descriptors = [
        descriptor
        for module in map(importlib.import_module, MODULES)
        if isinstance(descriptor := getattr(module, "DESCRIPTOR", None), FileDescriptor)
    ]
    assert {descriptor.name: descriptor.package for descriptor in descriptors} == {
        file.name: file.package for file in contract.files
    }
    assert all(descriptor.package.startswith("janus.") for descriptor in descriptors)


def test_every_service_has_a_stub_and_a_servicer(contract: Contract) -> None:
    for file in contract.files:
        for service in file.service:
            module = file.name.removesuffix(".proto").replace("/", ".").replace("janus.", "janus_api.", 1)
            grpc_module = importlib.import_module(f"{module}_pb2_grpc")
            servicer = getattr(grpc_module, f"{service.name}Servicer")
            assert hasattr(grpc_module, f"{service.name}Stub")
            assert all(hasattr(servicer, method.name) for method in service.method)


def test_no_module_or_stub_imports_the_name_janus() -> None:
    imports = re.compile(r"^\s*(?:from|import) janus(?:\.| )", re.MULTILINE)
    assert [path for path in FOLDER.rglob("*.py*") if path.suffix != ".pyc" and imports.search(path.read_text())] == []


@pytest.mark.parametrize(
    "imports",
    [
        "import janus; from janus_api.inference.v1 import inference_service_pb2 as pb",
        "from janus_api.inference.v1 import inference_service_pb2 as pb; import janus",
    ],
    ids=["library first", "contract first"],
)
def test_it_lives_beside_the_library_named_janus(python: Callable[[str], str], imports: str) -> None:
    shown = python(f"{imports}; print(janus.Queue.__module__, pb.GenerateRequest.DESCRIPTOR.full_name)")
    assert shown == "janus janus.inference.v1.GenerateRequest"

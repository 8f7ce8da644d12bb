"""Fixtures for tests that drive a whole mesh from outside."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.system.driver import Server, server

from janus_app.client import Mesh, connect


@pytest.fixture(scope="module")
def served() -> Iterator[Server]:
    # A reindex waits so long before it removes what recalls may be reading; here nobody does.
    with server(environment={"JANUS_MEMORY__RETIRE_AFTER_S": "0.2"}) as running:
        yield running


@pytest.fixture
def mesh(served: Server) -> Iterator[Mesh]:
    with connect(served.data) as stubs:
        yield stubs

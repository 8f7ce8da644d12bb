"""Calls to one service as one tenant, each with a deadline; and what is said when they go wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import typer
from rich.console import Console

from janus_app.client import Mesh
from janus_app.refusals import Refused


class Calls:
    """A stub with what every call carries."""

    def __init__(self, stub: Any, tenant: str, timeout: float) -> None:
        self.tenant = tenant
        self._stub = stub
        self._metadata = [("janus-tenant", tenant)] if tenant else []
        self._timeout = timeout

    @property
    def whose(self) -> str:
        """What a command takes to act as the same tenant."""
        return f" --tenant {self.tenant}" if self.tenant else ""

    def unary(self, method: str, request: Any) -> Any:
        """An answer. Raises grpc.RpcError."""
        return getattr(self._stub, method)(request, timeout=self._timeout, metadata=self._metadata)

    def stream(self, method: str, request: Any) -> Any:
        """A call whose answers are iterated."""
        return getattr(self._stub, method)(request, timeout=self._timeout, metadata=self._metadata)

    def send(self, method: str, requests: Iterable[Any]) -> Any:
        """The answer to a stream of requests."""
        return getattr(self._stub, method)(iter(requests), timeout=self._timeout, metadata=self._metadata)


@contextmanager
def mesh_of(data: Path | None, address: str | None, *, waits: bool = False) -> Iterator[Mesh]:
    """The mesh that a command talks to; whatever goes wrong is said in plain words, with exit code 1.

    ``waits``: one of the data folder that restarts is waited for.
    """
    from janus_app.client import PATIENCE_SECONDS, MeshNotUp, await_restart, connect, explain
    from janus_app.settings import data_folder

    def say_so() -> None:
        told = f"the mesh stops or starts; waiting for it, up to {PATIENCE_SECONDS:.0f} s …"
        Console(stderr=True).print(told, style="yellow", highlight=False)

    folder = data_folder(data)
    try:
        if waits and not address:
            await_restart(folder, say_so)
        with connect(folder, address) as mesh:
            yield mesh
    except (MeshNotUp, Refused) as error:
        raise failed(str(error)) from None
    except grpc.RpcError as error:
        raise failed(explain(error)) from None


def failed(problem: str) -> typer.Exit:
    """Say what is wrong; to be raised."""
    Console(stderr=True).print(problem, style="red", highlight=False, markup=False, soft_wrap=True)
    return typer.Exit(1)

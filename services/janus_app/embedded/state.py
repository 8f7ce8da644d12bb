"""The state file: who serves a data folder, and where.

It is how client commands find the running mesh, and how a later start learns
the ports of the one before. It holds passwords, so only its owner can read it.
"""

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from janus_app.embedded.process import start_time

FILE = "state.json"


@dataclass(frozen=True)
class State:
    """What ``data/state.json`` says.

    ``pid`` is None after a normal stop. The URLs hold passwords, so
    repr() leaves them out. ``published`` is what the caller of
    the stack added, such as ``grpc`` and ``http`` addresses. ``ports`` are the
    ones of the servers started here, kept after a stop so that they are chosen
    again.
    """

    pid: int | None = None
    started: int | None = None
    postgres_url: str | None = field(default=None, repr=False)
    redis_url: str | None = field(default=None, repr=False)
    chroma_url: str | None = None
    published: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    @classmethod
    def ours(cls, ports: dict[str, int]) -> "State":
        """This process's, which is starting and has no addresses yet."""
        return cls(pid=os.getpid(), started=start_time(os.getpid()), ports=ports)

    @property
    def alive(self) -> bool:
        """True while the process that wrote it runs (and not another with its id)."""
        if self.pid is None:
            return False
        if self.started is not None:
            return start_time(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def with_published(self, values: dict[str, str | None]) -> "State":
        """With these values added; None takes one away."""
        merged = {**self.published, **values}
        return replace(self, published={key: value for key, value in merged.items() if value is not None})


def load(data: Path) -> State:
    """The file as it is, alive or not; an empty State when there is none or it is damaged."""
    try:
        found: dict[str, Any] = json.loads((data / FILE).read_text(encoding="utf-8"))
        return State(
            pid=_number(found["pid"]),
            started=_number(found["started"]),
            postgres_url=_text(found["postgres_url"]),
            redis_url=_text(found["redis_url"]),
            chroma_url=_text(found["chroma_url"]),
            published={str(name): str(value) for name, value in found["published"].items()},
            ports={str(name): int(port) for name, port in found["ports"].items()},
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return State()


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def save(data: Path, state: State) -> None:
    """Replace the file in one step, so that a reader sees the old or the new one whole."""
    fresh = data / f".{FILE}.{os.getpid()}"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(asdict(state), file, indent=2)
        file.write("\n")
    os.replace(fresh, data / FILE)


def read_state(data: Path) -> State | None:
    """What the Janus running on this data folder says; None when none runs.

    While it is starting, the addresses are still missing.
    """
    state = load(data)
    return state if state.alive else None

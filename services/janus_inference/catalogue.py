"""What can be asked, for people and programs to choose from."""

import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from janus_inference.standing import Standings
from janus_kit.errors import InvalidArgument, NotFound

DEFAULT_PAGE = 100
MAX_PAGE = 1000


class Kind(Enum):
    """What a name stands for."""

    GENERATIVE = "generative"
    EMBEDDING = "embedding"
    ALIAS = "alias"


@dataclass(frozen=True, slots=True)
class Entry:
    """One model or alias; ``targets`` are those of an alias, in order."""

    name: str
    kind: Kind
    provider: str = ""
    targets: tuple[str, ...] = ()
    context_window_tokens: int | None = None
    max_output_tokens: int | None = None
    capabilities: tuple[str, ...] = ()
    description: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, and the token for the next ones; empty at the end."""

    entries: tuple[Entry, ...]
    next_token: str


class Catalogue:
    """All entries, sorted by name."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.name)
        self._by_name = {entry.name: entry for entry in self._entries}

    def get(self, name: str) -> Entry:
        """One entry. Raises NotFound."""
        found = self._by_name.get(name)
        if found is None:
            raise NotFound("model", name)
        return found

    def is_healthy(self, entry: Entry, standings: Standings) -> bool:
        """Whether the provider did well when it was last asked; an alias's first target decides."""
        provider = entry.provider or entry.targets[0].partition("/")[0]
        return standings.problem(provider) is None

    def page(self, size: int, token: str, kind: Kind | None) -> Page:
        """Entries after the token's, ``size`` at most (0: 100). Raises InvalidArgument."""
        if not 0 <= size <= MAX_PAGE:
            raise InvalidArgument("page_size", f"must be 0 to {MAX_PAGE}")
        after = _name_of(token, kind) if token else ""
        wanted = [entry for entry in self._entries if kind is None or entry.kind is kind]
        start = bisect_right(wanted, after, key=lambda entry: entry.name)
        shown = wanted[start : start + (size or DEFAULT_PAGE)]
        more = start + len(shown) < len(wanted)
        return Page(tuple(shown), _token_of(shown[-1].name, kind) if more else "")


def _token_of(name: str, kind: Kind | None) -> str:
    """Says after which name to go on: entries may come and go between two pages."""
    text = json.dumps([name, kind.value if kind else ""])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _name_of(token: str, kind: Kind | None) -> str:
    try:
        padded = token + "=" * (-len(token) % 4)
        name, of_kind = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        if of_kind == (kind.value if kind else "") and isinstance(name, str):
            return name
    except (ValueError, TypeError, binascii.Error):
        pass
    raise InvalidArgument("page_token", "must be one that this query returned", reason="PAGE_TOKEN_INVALID")

"""The errors of providers in whichever form they write them: an object, one within it, or words alone."""

from collections.abc import Mapping
from typing import Any

from janus_inference.provider_errors import Refused, is_flagged


def refused(
    status: int, error: object, *, retry_after: float | None = None, should_retry: bool | None = None
) -> Refused:
    """What an error says that came with this status."""
    said: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": error}
    return Refused(
        status=status,
        code="content_filter" if is_flagged(said) else _code(said.get("code")),
        type=_word(said.get("type")),
        param=_word(said.get("param")),
        message=_message(said),
        limit_tokens=_count(said.get("n_ctx")),
        request_tokens=_count(said.get("n_prompt_tokens")),
        retry_after=retry_after,
        should_retry=should_retry,
    )


def _code(value: object) -> str:
    """A word. A number is an HTTP status again, but for those that are none."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1000:
        return str(value)
    return _word(value)


def _message(said: Mapping[str, Any]) -> str:
    """What is said, and what a router says that the server behind it said."""
    about = said.get("metadata")
    behind = _word(about.get("raw")) if isinstance(about, Mapping) else ""
    return " ".join(filter(None, (_word(said.get("message")) or _word(said.get("detail")), behind)))


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _word(value: object) -> str:
    return value if isinstance(value, str) else ""

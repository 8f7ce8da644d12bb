"""The common values of JSON Schema's ``format``; a format that is not known holds."""

import ipaddress
import uuid
from collections.abc import Callable
from datetime import date, datetime, time
from urllib.parse import urlsplit

_MAX_CHARS = 4096


def holds(text: str, name: str) -> bool:
    """Whether a text is of this format."""
    check = _FORMATS.get(name)
    if check is None:
        return True
    try:
        return len(text) <= _MAX_CHARS and check(text)
    except ValueError:
        return False


def _is_date(text: str) -> bool:
    return len(text) == 10 and bool(date.fromisoformat(text))


def _is_time(text: str) -> bool:
    return len(text) >= 9 and ":" in text and time.fromisoformat(text.upper()).tzinfo is not None


def _is_date_time(text: str) -> bool:
    """With a time zone, as RFC 3339 wants it."""
    separated = len(text) > 10 and text[10] in "Tt "
    return separated and datetime.fromisoformat(text.upper()).tzinfo is not None


def _is_email(text: str) -> bool:
    name, at, domain = text.rpartition("@")
    return bool(name and at and domain) and not any(char.isspace() for char in text) and "@" not in name


def _is_hostname(text: str) -> bool:
    labels = text.split(".")
    return len(text) <= 253 and all(
        0 < len(label) <= 63
        and all(char.isascii() and (char.isalnum() or char == "-") for char in label)
        and label[0] != "-" != label[-1]
        for label in labels
    )


def _is_uri(text: str) -> bool:
    parts = urlsplit(text)
    return bool(parts.scheme and (parts.netloc or parts.path)) and not any(char.isspace() for char in text)


def _is_uuid(text: str) -> bool:
    return len(text) == 36 and str(uuid.UUID(text)) == text.lower()


def _is_ipv4(text: str) -> bool:
    return ipaddress.IPv4Address(text) is not None


def _is_ipv6(text: str) -> bool:
    return "%" not in text and ipaddress.IPv6Address(text) is not None


_FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _is_date,
    "time": _is_time,
    "date-time": _is_date_time,
    "email": _is_email,
    "hostname": _is_hostname,
    "uri": _is_uri,
    "uuid": _is_uuid,
    "ipv4": _is_ipv4,
    "ipv6": _is_ipv6,
}

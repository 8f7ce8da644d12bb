"""Ids of tool calls in the form that a provider takes.

A conversation may go on at another provider than the one that made the call,
and not every provider takes every other's ids.
"""

import hashlib
import re

ANTHROPIC = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

RESPONSES = re.compile(r".{1,64}", re.DOTALL)


def fitting(call_id: str, form: re.Pattern[str], length: int) -> str:
    """The id itself where it has the form; else so many characters that always stand for it."""
    if form.fullmatch(call_id):
        return call_id
    return hashlib.sha256(call_id.encode()).hexdigest()[:length]

"""Short ways to a prompt, and to ask a provider without anything around it."""

from typing import Any

from janus_inference.model import Message, Prompt, Role, Text

NAME = "upstream"


def prompt(text: str = "hello", **fields: Any) -> Prompt:
    """One user message, for ``upstream/fake`` unless said otherwise."""
    fields.setdefault("model", f"{NAME}/fake")
    return Prompt((Message(Role.USER, (Text(text),)),), **fields)

"""How a dialect says that something cannot be said in it."""

from janus_inference.model import Document, Part
from janus_kit.errors import InvalidArgument

_CAPABILITY = {"image": "IMAGE_INPUT", "audio": "AUDIO_INPUT", "document": "DOCUMENT_INPUT"}


def unsupported(model: str, capability: str, field: str, rule: str) -> InvalidArgument:
    """A prompt that asks for what the model, or its dialect, cannot do."""
    return InvalidArgument(
        field, rule, reason="CAPABILITY_UNSUPPORTED", metadata={"model": model, "capability": capability}
    )


def unsupported_part(model: str, part: Part, path: str) -> InvalidArgument:
    """A part of a kind that the dialect has no place for; ``path`` is the part's."""
    kind = type(part).__name__.lower()
    rule = f"this model takes no {kind} here"
    return unsupported(model, _CAPABILITY.get(kind, kind.upper()), f"{path}.{kind}", rule)


def refuse_citations(model: str, document: Document, path: str) -> None:
    """Raises InvalidArgument where a document is to be cited, by a provider that cites none."""
    if document.citations:
        raise unsupported(model, "citations", f"{path}.document.citations", "this provider does not cite documents")


def nothing_to_say() -> InvalidArgument:
    """A prompt of which the provider would be told nothing."""
    return InvalidArgument("prompt.messages", "must say something besides what other providers issued")


def malformed(path: str, rule: str) -> InvalidArgument:
    """A part that its issuer would not know as its own."""
    return InvalidArgument(path, rule)

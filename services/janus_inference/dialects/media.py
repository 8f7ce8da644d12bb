"""Pictures, sound and documents, in the forms that providers take."""

import base64

from janus_inference.model import Document, Media

AUDIO_FORMATS = {
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/vnd.wave": "wav",
    "audio/mpeg": "mp3",
    "audio/mp3": "mp3",
}
_TEXTS = {"application/json", "application/xml", "application/yaml", "application/x-yaml"}
_ENDINGS = {"application/pdf": ".pdf"}


def base64_of(data: bytes) -> str:
    """Bytes as providers take them in JSON."""
    return base64.b64encode(data).decode()


def data_url(media: Media) -> str:
    """The address of what is at an address, or one that holds the bytes."""
    if media.data is None:
        return media.uri or ""
    return f"data:{media.mime_type};base64,{base64_of(media.data)}"


def bare_type(media: Media) -> str:
    """The MIME type without its parameters, in lower case; empty when it is not known."""
    return media.mime_type.partition(";")[0].strip().lower()


def text_of(document: Document) -> str | None:
    """The words of a document that is plain text; None for any other."""
    kind, data = bare_type(document.media), document.media.data
    if data is None or not (kind.startswith("text/") or kind in _TEXTS):
        return None
    return data.decode("utf-8", "replace")


def inline_text(title: str, text: str) -> str:
    """A document as part of what is said, for models that take no documents."""
    return f"Document{f' “{title}”' if title else ''}:\n{text}"


def file_name(document: Document) -> str:
    """A name for a document; providers want one with an ending."""
    ending = _ENDINGS.get(bare_type(document.media), "")
    name = document.title or "document"
    return name if name.lower().endswith(ending) else f"{name}{ending}"

"""The sources that this provider named in an earlier answer, as it takes them back."""

from collections.abc import Sequence
from typing import Any

from janus_inference.dialects.capabilities import malformed
from janus_inference.dialects.json_text import NotJson, strict_object
from janus_inference.model import Citation, Part

# By kind: what it must have beside the words that are cited, and what it calls its title, which may be none.
# An answer says more than that of some, and the provider refuses what it does not know in a request.
_FIELDS: dict[str, tuple[tuple[str, ...], str]] = {
    "char_location": (("document_index", "start_char_index", "end_char_index"), "document_title"),
    "page_location": (("document_index", "start_page_number", "end_page_number"), "document_title"),
    "content_block_location": (("document_index", "start_block_index", "end_block_index"), "document_title"),
    "search_result_location": (("search_result_index", "source", "start_block_index", "end_block_index"), "title"),
    "web_search_result_location": (("encrypted_index", "url"), "title"),
}


def sources(parts: Sequence[Part], issuer: str, path: str) -> dict[int, list[dict[str, Any]]]:
    """By the index of the text part that they belong to. Others' sources are not said, nor kinds that are new here."""
    found: dict[int, list[dict[str, Any]]] = {}
    for at, part in enumerate(parts):
        if isinstance(part, Citation) and part.issuer == issuer and part.data:
            source = _source(part.data, f"{path}.parts[{at}].citation.data")
            if source is not None:
                found.setdefault(part.part_index, []).append(source)
    return found


def _source(data: bytes, path: str) -> dict[str, Any] | None:
    try:
        said = strict_object(data)
    except NotJson:
        said = {}
    kind = said.get("type")
    if not isinstance(kind, str):
        raise malformed(path, "must be as the issuer wrote it")
    if kind not in _FIELDS:
        return None
    needed, title = _FIELDS[kind]
    source = {"type": kind, title: said.get(title)} | {name: said.get(name) for name in ("cited_text", *needed)}
    for name, value in source.items():
        wanted = int if name.endswith(("_index", "_number")) and name != "encrypted_index" else str
        if type(value) is not wanted and (name != title or value is not None):
            raise malformed(path, "must be as the issuer wrote it")
    return source

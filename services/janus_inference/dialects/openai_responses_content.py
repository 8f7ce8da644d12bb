"""What stands beside and behind the words of an answer: sources, and how likely each token was."""

from collections.abc import Mapping
from typing import Any

from janus_inference.dialects.parts import citation as bounded
from janus_inference.events import TokenLogprob
from janus_inference.model import Citation


def string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value


def logprob(said: Mapping[str, Any]) -> TokenLogprob:
    others = (other for other in said.get("top_logprobs") or () if other.get("token") is not None)
    top = tuple((string(other["token"]), float(other["logprob"])) for other in others)
    return TokenLogprob(string(said["token"]), float(said["logprob"]), top)


def citation(said: Mapping[str, Any], part_index: int) -> Citation:
    """Of an address, or of a file that the provider holds: then by its ids, as their address."""
    start, end = said.get("start_index"), said.get("end_index")
    if said.get("type") == "file_citation":
        start = end = said.get("index")
    ids = (said.get("container_id"), said.get("file_id"))
    source = {
        "title": said.get("title") or said.get("filename"),
        "url": said.get("url") or "/".join(str(identity) for identity in ids if identity),
    }
    return bounded(source, part_index, start=start, end=end)

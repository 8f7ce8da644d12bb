"""What this dialect's reader and writer agree on: the forms in which parts of an answer travel back.

A reasoning item travels as the signature of its part, an item of a server-side
tool as the data of an opaque part: each whole, as its issuer wrote it. Of
messages and function calls the contract has its own parts; what these have no
place for travels in an opaque part of the item's type before them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from janus_inference.dialects.json_text import compact
from janus_inference.dialects.parts import OpenCall

REASONING = "reasoning"
MESSAGE = "message"
CALL = "function_call"

# Fields without which a model reads its own earlier answer as another's.
_KEPT = {MESSAGE: ("phase",), CALL: ("call_id", "namespace", "caller")}
# Items that wait for something which the contract has no part for.
_ASKING = frozenset(
    {"custom_tool_call", "computer_call", "local_shell_call", "shell_call", "apply_patch_call", "mcp_approval_request"}
)


@dataclass(eq=False, slots=True)
class Item:
    """An item of an answer that has begun, and how much of it was passed on.

    ``said`` are characters by what they are part of, ``cited`` annotations by
    the content that they belong to.
    """

    kind: str
    id: str = ""
    call: OpenCall | None = None
    keeps: bool = False
    done: bool = False
    said: dict[object, int] = field(default_factory=dict)
    cited: dict[int, int] = field(default_factory=dict)


def kept(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a message or a call that only their issuer understands; empty when it set none."""
    fields = {name: item[name] for name in _KEPT.get(kind, ()) if item.get(name) is not None}
    return fields if fields.keys() - {"call_id"} else {}


def proof(item: Mapping[str, Any]) -> bytes:
    """A reasoning item as a signature."""
    return compact(item).encode()


def waits(item: Mapping[str, Any]) -> bool:
    """Whether an item asks the caller for something that the contract has no part for."""
    kind = str(item.get("type"))
    if kind in _ASKING:
        return True
    return kind.startswith("tool_search") and item.get("execution") == "client"

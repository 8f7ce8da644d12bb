"""Where in an answer an event belongs, and which events say nothing that does not come again."""

from collections.abc import Mapping
from typing import Any

_STAGES = {
    "code_interpreter_call": ("in_progress", "interpreting", "completed"),
    "code_interpreter_call_code": ("delta", "done"),
    "compaction": ("compacting",),
    "content_part": ("added", "done"),
    "custom_tool_call_input": ("delta", "done"),
    "file_search_call": ("in_progress", "searching", "completed"),
    "image_generation_call": ("in_progress", "generating", "partial_image", "completed"),
    "mcp_call": ("in_progress", "completed", "failed"),
    "mcp_call_arguments": ("delta", "done"),
    "mcp_list_tools": ("in_progress", "completed", "failed"),
    "reasoning_summary_part": ("added", "done"),
    "shell_call_command": ("added", "delta", "done"),
    "shell_call_output_content": ("delta", "done"),
    "web_search_call": ("in_progress", "searching", "completed"),
}

REPEATED = frozenset(
    ["response.queued", "response.in_progress"]
    + [f"response.{of}.{stage}" for of, stages in _STAGES.items() for stage in stages]
)
"""What these say comes again, whole, when their item or the answer is done."""


def place_of(event: Mapping[str, Any]) -> object:
    """The item: its place in the answer, or its id where a server says no places."""
    place = event.get("output_index")
    return event.get("item_id") if place is None else place


def content_index(event: Mapping[str, Any]) -> int:
    """The part of the item's content."""
    return event.get("content_index") or 0


def thought_key(kind: str, event: Mapping[str, Any]) -> tuple[str, int]:
    """The form of a stretch of reasoning, and which of its paragraphs it is."""
    if "summary" in kind:
        return "summary", event.get("summary_index") or 0
    return "text", content_index(event)

"""JSON Schemas of a prompt, for models that are asked to hold to one and for those that are held to it."""

import json
from typing import Any

from janus_inference.dialects.capabilities import unsupported
from janus_inference.families import family
from janus_inference.model import JsonSchemaFormat, ToolDefinition
from janus_inference.profiles import ChatProfile

STRICT_FORMAT = "prompt.response_format.json_schema.strict"


def can_hold(model: str, profile: ChatProfile) -> bool:
    """Whether a model of this server can be held to a schema."""
    known = family(model).capabilities
    return profile.json_schema and not (profile.by_family and known and "JSON_SCHEMA" not in known)


def asked_for(wanted: JsonSchemaFormat) -> str:
    """Instructions that ask for an answer to a schema, where nothing can hold the model to it."""
    about = f" ({wanted.description})" if wanted.description else ""
    return (
        f"Answer with one JSON value and nothing else: no explanation, no code fence. "
        f"It must hold to this JSON Schema, named '{wanted.name}'{about}:\n{wanted.schema_json}"
    )


def refuse_strict_format(model: str) -> Exception:
    """For a model that can be asked to hold to a schema, but not held to it."""
    return unsupported(model, "JSON_SCHEMA", STRICT_FORMAT, "this model cannot be held to a schema, only asked to")


def refuse_strict_tool(model: str, index: int) -> Exception:
    """The same for a tool's arguments."""
    field = f"prompt.tools[{index}].strict"
    return unsupported(model, "JSON_SCHEMA", field, "this model cannot be held to the schema of a tool")


def parameters(tool: ToolDefinition) -> dict[str, Any]:
    """The schema of a tool's arguments; of one without any, that there are none."""
    if tool.parameters_schema_json:
        # A schema that does not say that it is an object with properties is refused by some; arguments always are.
        schema: dict[str, Any] = json.loads(tool.parameters_schema_json)
        missing = {"type": "object", "properties": {}}
        return schema | {name: value for name, value in missing.items() if name not in schema}
    if tool.strict:
        return {"type": "object", "properties": {}, "required": [], "additionalProperties": False}
    return {"type": "object", "properties": {}}

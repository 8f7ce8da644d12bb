"""A function as a tool: its schema, its arguments, its result."""

import asyncio
import inspect
import json
import re
from collections.abc import Callable
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.json_schema import GenerateJsonSchema, JsonRef, JsonSchemaValue
from pydantic_core import to_json

from janus_api.content.v1 import message_pb2 as content
from janus_api.tools.v1 import tool_worker_service_pb2 as pb
from janus_worker.call import Call

SideEffect = Literal["read_only", "idempotent", "at_most_once"]
"""What a call does to the world: nothing; one thing for one idempotency key; what must not be done again."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


class ToolError(Exception):
    """What the model is to read instead of a result. Other exceptions reach the log, and not the model."""


class _WithoutNames(GenerateJsonSchema):
    """Titles are those that the author set, and none made of the names of fields and classes.

    Whoever writes the same tool's schema by hand has no others, and the two have to agree.
    """

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        made = super().generate_inner(schema)
        named = schema.get("cls")
        if isinstance(named, type):
            told = self.get_schema_from_definitions(JsonRef(made["$ref"])) if "$ref" in made else made
            config = getattr(named, "model_config", None) or getattr(named, "__pydantic_config__", {})
            if told is not None and told.get("title") == named.__name__ and not config.get("title"):
                del told["title"]
        return made


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. ``call_parameter`` is the name of the parameter that gets the Call."""

    name: str
    description: str
    function: Callable[..., Any]
    arguments: type[BaseModel]
    schema: dict[str, Any]
    call_parameter: str
    side_effect: SideEffect
    timeout: timedelta | None

    @classmethod
    def of(
        cls,
        function: Callable[..., Any],
        *,
        name: str,
        description: str,
        side_effect: SideEffect,
        timeout: timedelta | None,
    ) -> "Tool":
        """Raises TypeError for a function that cannot be a tool."""
        name = name or function.__name__
        if _NAME.fullmatch(name) is None:
            raise TypeError(f"'{name}' is no name for a tool: 1 to 64 letters, digits, '_', '.' and '-'")
        hints = get_type_hints(function, include_extras=True)
        fields: dict[str, Any] = {}
        call_parameter = ""
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                raise TypeError(f"the tool '{name}' must have named parameters only, not '{parameter}'")
            if parameter.name in ("self", "cls") and parameter.name not in hints:
                raise TypeError(
                    f"the tool '{name}' is a method without its object: "
                    f"make one of the bound method, worker.tool(shop.{function.__name__})"
                )
            if parameter.name.startswith("_") or parameter.name == "model_config":
                raise TypeError(
                    f"the tool '{name}' must not have a parameter '{parameter.name}': "
                    "no argument's name begins with '_' or is 'model_config'"
                )
            hint = hints.get(parameter.name, Any)
            if hint is Call:
                call_parameter = parameter.name
                continue
            fields[parameter.name] = (hint, ... if parameter.default is parameter.empty else parameter.default)
        try:
            arguments = create_model(name, __config__=ConfigDict(extra="forbid"), **fields)
            schema = arguments.model_json_schema(schema_generator=_WithoutNames)
        except Exception as error:
            raise TypeError(f"the tool '{name}' has a parameter that cannot be an argument: {error}") from error
        words = description or inspect.getdoc(function) or ""
        return cls(name, words, function, arguments, schema, call_parameter, side_effect, timeout)

    def registered(self) -> pb.Tool:
        """As the server is told of it."""
        tool = pb.Tool(
            name=self.name,
            description=self.description,
            parameters_schema_json=json.dumps(self.schema, ensure_ascii=False),
            side_effect=pb.SideEffect.Value(f"SIDE_EFFECT_{self.side_effect.upper()}"),
        )
        if self.timeout is not None:
            tool.timeout.FromTimedelta(self.timeout)
        return tool

    async def run(self, call: Call, arguments_json: str, executor: Executor) -> content.ToolResult:
        """The function's result. One without `async` runs on a thread, which nothing can interrupt.

        Raises ToolError for arguments that are not right, and what the function raises.
        """
        try:
            parsed = self.arguments.model_validate_json(arguments_json)
        except ValidationError as error:
            raise ToolError(_told(error)) from None
        # As the function's annotations say, not as JSON has them.
        given = {field: getattr(parsed, field) for field in type(parsed).model_fields}
        if self.call_parameter:
            given[self.call_parameter] = call
        if inspect.iscoroutinefunction(self.function):
            return _result(await self.function(**given))
        context = copy_context()

        def work() -> tuple[Any, BaseException | None]:
            # A Future cannot carry every exception, and changes some.
            try:
                return context.run(self.function, **given), None
            except BaseException as error:  # noqa: BLE001 - raised below
                return None, error

        working = asyncio.get_running_loop().run_in_executor(executor, work)
        while not working.done():
            try:
                await asyncio.shield(working)
            except asyncio.CancelledError:
                call.cancel()
        value, raised = working.result()
        if isinstance(raised, KeyboardInterrupt):
            raise RuntimeError("the tool raised KeyboardInterrupt, on a thread that gets no Ctrl-C") from raised
        if raised is not None:
            raise raised
        return _result(value)


def _told(error: ValidationError) -> str:
    """What is wrong with the arguments, without repeating them."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "the arguments are not right: " + "; ".join(
        f"{'.'.join(map(str, each['loc'])) or 'arguments'}: {each['msg']}" for each in found[:10]
    )


def _result(value: Any) -> content.ToolResult:
    """Texts as they are, a ToolResult as it is, everything else as JSON; nothing for None."""
    if isinstance(value, content.ToolResult):
        return value
    if value is None:
        return content.ToolResult()
    text = value if isinstance(value, str) else to_json(value).decode()
    return content.ToolResult(parts=[content.Part(text=text)])

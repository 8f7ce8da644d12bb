"""Settings of MCP servers: which there are, how they are reached, and what the operator says of their tools.

They are the operator's alone: a server that is a command is a process on this
machine, with Janus's rights.
"""

import hashlib
import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, StringConstraints, field_validator, model_validator

from janus_kit.settings import Settings
from janus_orchestration.model import SideEffect

Seconds = Annotated[float, Field(ge=0.01, le=86_400)]
ServerName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
Word = Annotated[str, StringConstraints(min_length=1, max_length=4_096, pattern=r"^[^\x00]+$")]

# How a request is framed and which session it is of is the protocol's to say.
_OWN_HEADERS = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class McpToolSettings(Settings):
    """What the operator knows better than the server does."""

    side_effect: SideEffect | None = None
    """Unset: what the server hints."""
    timeout_s: Seconds | None = None
    """Unset: the server's."""


class McpServerSettings(Settings):
    """One MCP server: a command that speaks over stdin and stdout, or a URL that speaks streamable HTTP."""

    command: tuple[Word, ...] = Field(default=(), max_length=64)
    """The program and its arguments; no shell. Arguments are shown by `config show`: secrets go into ``env``."""
    env: dict[str, SecretStr] = Field(default_factory=dict, max_length=64)
    """What the program finds in its environment beside PATH, HOME and the like. Janus's own environment it does not."""
    cwd: str | None = None
    """The folder that the program starts in. Unset: Janus's."""
    stderr: bool = False
    """Let what the program writes to stderr be written to Janus's; it is as secret as the program makes it."""
    url: str = ""
    headers: dict[str, SecretStr] = Field(default_factory=dict, max_length=32)
    """Sent with every request, e.g. `Authorization`."""

    tenants: tuple[str, ...] = Field(default=(), max_length=1_000)
    """Whose agents may use it. Empty: everybody's."""
    tools: dict[str, McpToolSettings] = Field(default_factory=dict, max_length=256)
    """By the name that the server gives them."""
    timeout_s: Seconds = 60.0
    """Longest time of a call; an agent may say otherwise."""
    max_concurrency: int = Field(default=16, ge=1, le=1_000)
    """Calls at the same time from this process; more wait, within their time."""
    connect_timeout_s: Seconds = 30.0
    """Longest time from the start of a connection to its list of tools, and for any later list."""
    refresh_s: Seconds = 300.0
    """The list of tools is read again after so long, also where the server would say that it has changed."""
    longest_retry_s: Seconds = 30.0
    """Longest wait between tries to connect; the first is 0.25 s, and each doubles it."""

    @property
    def origin(self) -> str:
        """Changes when a list of tools that was read before is no longer to be believed."""
        said = self.model_dump_json(include={"command", "cwd", "url", "tools", "timeout_s"})
        return hashlib.sha256(said.encode()).hexdigest()

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if not value:
            return value
        try:
            parts = urlsplit(value)
            is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            is_one = False
        if not is_one:
            raise ValueError("must be an address: https://host:port/path")
        if "@" in parts.netloc:
            raise ValueError("must not have credentials in it; put them into headers")
        return value

    @field_validator("env")
    @classmethod
    def _can_be_an_environment(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", name):
                raise ValueError(f"'{name[:64]}' is no name of a variable")
            if "\x00" in secret.get_secret_value():
                raise ValueError(f"the value of '{name}' must not contain NUL characters")
        return value

    @field_validator("headers")
    @classmethod
    def _may_be_added(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            if not re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}", name):
                raise ValueError(f"'{name[:64]}' is no name of a header")
            if name.lower() in _OWN_HEADERS or name.lower().startswith("mcp-"):
                raise ValueError(f"'{name}' is set by Janus")
            if not re.fullmatch(r"[\x20-\x7e]{1,8192}", secret.get_secret_value().strip()):
                raise ValueError(f"the value of '{name}' must be 1 to 8,192 printable ASCII characters")
        if len({name.lower() for name in value}) != len(value):
            raise ValueError("names of headers must be unique, whatever their case")
        return value

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        if bool(self.command) == bool(self.url):
            raise ValueError("needs either a command or a url")
        if self.url and (self.env or self.cwd is not None or self.stderr):
            raise ValueError("env, cwd and stderr are a command's")
        if self.command and self.headers:
            raise ValueError("headers are a url's")
        return self

"""What an operator may say of MCP servers, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from janus_kit.settings import SettingsError, load
from janus_orchestration.settings import OrchestrationSettings


def loaded(servers: dict[str, Any], **environ: str) -> OrchestrationSettings:
    found = load(
        {"orchestration": OrchestrationSettings}, overrides={"orchestration.mcp_servers": servers}, environ=environ
    )
    return found.section("orchestration", OrchestrationSettings)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "needs either a command or a url"),
        ({"command": ["a"], "url": "https://example.com"}, "needs either a command or a url"),
        ({"command": ["a\x00b"]}, "String should match pattern"),
        ({"url": "example.com"}, "must be an address"),
        ({"url": "ftp://example.com"}, "must be an address"),
        ({"url": "https://:0"}, "must be an address"),
        ({"url": "https://ann:secret@example.com"}, "must not have credentials in it"),
        ({"url": "https://example.com", "env": {"A": "b"}}, "env, cwd and stderr are a command's"),
        ({"command": ["a"], "headers": {"A": "b"}}, "headers are a url's"),
        ({"command": ["a"], "env": {"A=B": "secret"}}, "'A=B' is no name of a variable"),
        ({"command": ["a"], "env": {"A": "secret\x00"}}, "the value of 'A' must not contain NUL"),
        ({"url": "https://example.com", "headers": {"a b": "secret"}}, "'a b' is no name of a header"),
        ({"url": "https://example.com", "headers": {"Host": "secret"}}, "'Host' is set by Janus"),
        ({"url": "https://example.com", "headers": {"Mcp-Session-Id": "secret"}}, "is set by Janus"),
        ({"url": "https://example.com", "headers": {"A": "secret\r\nB: c"}}, "must be 1 to 8,192 printable ASCII"),
        ({"url": "https://example.com", "headers": {"A": "secret", "a": "b"}}, "names of headers must be unique"),
        ({"command": ["a"], "tools": {"b": {"side_effect": "none"}}}, "Input should be 'read_only'"),
        ({"command": ["a"], "comand": "b"}, "unknown key, did you mean 'command'?"),
    ],
)
def test_a_server_that_cannot_be_is_refused_in_words_without_a_secret(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError) as refused:
        loaded({"shop": settings})
    assert problem in str(refused.value)
    assert "orchestration.mcp_servers.shop" in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["", "Shop", "my.shop", "a b", "_a", "a" * 33])
def test_a_servers_name_can_stand_before_a_tools(name: str) -> None:
    with pytest.raises(SettingsError):
        loaded({name: {"command": ["a"]}})


def test_a_secret_may_come_from_the_environment_and_is_not_shown() -> None:
    server = {"url": "https://example.com/mcp"}
    headers = '{"Authorization": "Bearer secret"}'
    found = loaded({"shop": server}, JANUS_ORCHESTRATION__MCP_SERVERS__SHOP__HEADERS=headers)
    assert found.mcp_servers["shop"].headers["Authorization"].get_secret_value() == "Bearer secret"
    assert "secret" not in repr(found)
    assert "secret" not in str(found.model_dump(mode="json"))

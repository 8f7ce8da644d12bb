"""Agents from files, and as a list."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from google.protobuf import json_format
from rich.console import Console
from rich.text import Text

from janus_api.orchestration.v1 import agent_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.calls import Calls
from janus_app.refusals import Refused
from janus_app.terminal import Column, plain, print_json, print_table, when

_COLUMNS = (
    Column("name"),
    Column("version", left_out=2),
    Column("put", left_out=4),
    Column("model"),
    Column("a second message", left_out=3),
    Column("tools", folds=True),
    Column("what for", folds=True, left_out=1),
)


def put(console: Console, calls: Calls, file: str, expected_version: int, *, as_json: bool) -> None:
    """Store the agent that a file describes."""
    request = pb.PutAgentRequest(agent=read(file), expected_version=expected_version)
    stored = calls.unary("PutAgent", request).agent
    if as_json:
        print_json(stored)
    else:
        console.print(f"{stored.name}, version {stored.version}", highlight=False, markup=False)


def read(file: str) -> agent_pb2.Agent:
    """An Agent of the contract as YAML or JSON, `-` for standard input. Raises Refused."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        # Every JSON text is YAML.
        value = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise Refused(f"{file} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise Refused(f"{file} is neither YAML nor JSON: {error}") from None
    if not isinstance(value, dict):
        raise Refused(f"{file} describes no agent: it must be an object with a name.")
    try:
        agent: agent_pb2.Agent = json_format.ParseDict(value, agent_pb2.Agent())
    except json_format.ParseError as error:
        raise Refused(f"{file} is no Agent of the contract: {error}") from None
    return agent


def show_list(console: Console, calls: Calls, *, as_json: bool) -> None:
    """A row an agent, by name."""
    agents: list[agent_pb2.Agent] = []
    token = ""
    while True:
        page = calls.unary("ListAgents", pb.ListAgentsRequest(page_token=token))
        agents += page.agents
        token = page.next_page_token
        if not token:
            break
    if as_json:
        for agent in agents:
            print_json(agent)
        return
    if not agents:
        console.print("There are none but `default`, which is there without being put.", markup=False)
        return
    rows = [
        (
            plain(agent.name),
            Text(str(agent.version)),
            Text(when(agent.created_at)),
            plain(agent.model or "default"),
            Text(_policy(agent.double_texting)),
            plain(", ".join(tool.name for tool in agent.tools)),
            plain(agent.description),
        )
        for agent in agents
    ]
    print_table(console, _COLUMNS, rows)


def _policy(policy: agent_pb2.DoubleTexting.ValueType) -> str:
    name = agent_pb2.DoubleTexting.Name(policy or agent_pb2.DOUBLE_TEXTING_ENQUEUE)
    return name.removeprefix("DOUBLE_TEXTING_").lower()

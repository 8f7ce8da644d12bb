"""Agents from files, and as a list."""

from __future__ import annotations

import sys
from pathlib import Path

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor
from rich.console import Console
from rich.text import Text

from janus_api.orchestration.v1 import agent_pb2
from janus_api.orchestration.v1 import orchestration_service_pb2 as pb
from janus_app.calls import Calls
from janus_app.refusals import Refused
from janus_app.terminal import Column, plain, print_json, print_table, when
from janus_kit.configuration_sources import repeated_keys

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
        # YAML would let the last one win without a word.
        repeated = next(repeated_keys(text), None)
    except OSError as error:
        raise Refused(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Refused(f"{file} cannot be read: it is not UTF-8") from None
    except yaml.YAMLError as error:
        raise Refused(f"{file} is neither YAML nor JSON: {error}") from None
    if repeated is not None:
        raise Refused(f"{file} line {repeated[1]}: '{repeated[0]}' is there twice.")
    if not isinstance(value, dict):
        raise Refused(f"{file} describes no agent: it must be an object with a name.")
    unknown = _unknown(value, agent_pb2.Agent.DESCRIPTOR, "agent")
    if unknown:
        raise Refused(f"{file} is no Agent of the contract: {unknown}.")
    try:
        agent: agent_pb2.Agent = json_format.ParseDict(value, agent_pb2.Agent())
    except json_format.ParseError as error:
        raise Refused(f"{file} is no Agent of the contract: {error}") from None
    return agent


def _unknown(value: object, kind: Descriptor, where: str) -> str:
    """The first key that the contract does not have, with those that it has; empty for none."""
    if not isinstance(value, dict) or kind.file.package == "google.protobuf" or kind.GetOptions().map_entry:
        return ""
    fields = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    for key, inner in value.items():
        field = fields.get(key)
        if field is None:
            return f"{where} has no field '{key}'. It has {', '.join(each.name for each in kind.fields)}"
        if field.message_type is None:
            continue
        path = f"{where}.{field.name}"
        items = [(f"{path}[{place}]", each) for place, each in enumerate(inner)] if isinstance(inner, list) else []
        for place, each in items or [(path, inner)]:
            if found := _unknown(each, field.message_type, place):
                return found
    return ""


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

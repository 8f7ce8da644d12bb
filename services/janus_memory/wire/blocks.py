"""Requests about blocks, decoded and validated, and their answers."""

import json
import re
from dataclasses import dataclass

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import record_pb2, scope_pb2
from janus_kit.validate import Violations
from janus_memory.idempotency import Request
from janus_memory.model import Block, Scope
from janus_memory.wire.reads import bad_page_token, page_of, page_token, query_of
from janus_memory.wire.values import scope_of, scope_to, stamp
from janus_memory.wire.writes import request_of

_NAME = re.compile(r"[a-z0-9_-]{1,64}", re.ASCII)
_MAX_SIZE = 65_536
_DEFAULT_SIZE = 4_096


@dataclass(frozen=True)
class PutBlockCommand:
    """PutBlock, decoded."""

    block: Block
    expected_version: int
    request: Request


@dataclass(frozen=True)
class ListBlocksQuery:
    """ListBlocks, decoded. ``after`` is a name, subject and agent; ``query`` what page tokens are bound to."""

    scope: Scope
    after: tuple[str, str, str]
    limit: int
    query: str


def put_block_command(message: pb.PutBlockRequest) -> PutBlockCommand:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    block = message.block
    check.present("block", message.HasField("block"))
    scope = _scope(check, "block.scope", block.scope)
    _check_name(check, "block.name", block.name)
    size_limit = block.size_limit or _DEFAULT_SIZE
    if check.between("block.size_limit", block.size_limit, 0, _MAX_SIZE):
        check.length("block.text", block.text, at_most=size_limit)
    check.length("block.description", block.description, at_most=1_024)
    check.require(message.expected_version >= 0, "expected_version", "must not be negative")
    check.id("request_id", message.request_id, optional=True)
    check.done()
    return PutBlockCommand(
        Block(scope, block.name, block.text, size_limit, block.description),
        message.expected_version,
        request_of("PutBlock", message),
    )


def get_block_query(message: pb.GetBlockRequest) -> tuple[Scope, str]:
    """Scope and name. Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = _scope(check, "scope", message.scope)
    _check_name(check, "name", message.name)
    check.done()
    return scope, message.name


def list_blocks_query(tenant: str, message: pb.ListBlocksRequest) -> ListBlocksQuery:
    """Raises InvalidArgument naming every field that is wrong."""
    check = Violations()
    scope = _scope(check, "scope", message.scope)
    check.done()
    query = query_of("ListBlocks", message)
    after, limit = page_of(tenant, query, message.page_size, message.page_token)
    return ListBlocksQuery(scope, _place(after) if after else ("", "", ""), limit, query)


def block_to(block: Block) -> record_pb2.Block:
    return record_pb2.Block(
        scope=scope_to(block.scope),
        name=block.name,
        text=block.text,
        size_limit=block.size_limit,
        description=block.description,
        version=block.version,
        updated_at=stamp(block.updated_at),
    )


def blocks_to(
    tenant: str, query: str, blocks: list[Block], following: tuple[str, str, str] | None
) -> pb.ListBlocksResponse:
    after = json.dumps(following) if following else ""
    return pb.ListBlocksResponse(blocks=map(block_to, blocks), next_page_token=page_token(tenant, query, after))


def _scope(check: Violations, path: str, scope: scope_pb2.Scope) -> Scope:
    check.require(not scope.thread, f"{path}.thread", "must be empty")
    return scope_of(check, path, scope)


def _check_name(check: Violations, path: str, name: str) -> None:
    check.require(_NAME.fullmatch(name) is not None, path, "must be 1 to 64 characters of a to z, 0 to 9, '_' and '-'")


def _place(after: str) -> tuple[str, str, str]:
    try:
        name, subject, agent = json.loads(after)
    except (ValueError, TypeError, RecursionError):
        raise bad_page_token() from None
    if not all(isinstance(each, str) and "\x00" not in each for each in (name, subject, agent)):
        raise bad_page_token()
    return name, subject, agent

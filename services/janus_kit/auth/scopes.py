"""Which scope each RPC needs, read from the contract itself."""

from collections.abc import Iterable

from google.protobuf import descriptor_pool

from janus_api.common.v1 import scope_pb2
from janus_kit.auth.identity import ALL_SCOPES
from janus_kit.interceptors.call import Method


class UndeclaredScopeError(Exception):
    """An RPC of the contract that does not say who may call it; the server refuses to start."""


def methods_of(services: Iterable[str], infrastructure: Iterable[str] = ()) -> dict[str, Method]:
    """Every method of the services, by its path on the wire.

    ``infrastructure`` are gRPC's own services: for machines, without data of
    any tenant, so they need no scope. Raises UndeclaredScopeError for another
    RPC without `janus.common.v1.scope` or with an unknown one, and KeyError
    for a service that is not in the descriptor pool.
    """
    pool = descriptor_pool.Default()
    exempt = frozenset(infrastructure)
    methods: dict[str, Method] = {}
    for service in (*services, *exempt):
        for descriptor in pool.FindServiceByName(service).methods:
            name = f"{service}/{descriptor.name}"
            scope = None
            if service not in exempt:
                scope = descriptor.GetOptions().Extensions[scope_pb2.scope]
                if scope not in ALL_SCOPES:
                    raise UndeclaredScopeError(f"{name} declares no known scope: '{scope}'")
            methods[f"/{name}"] = Method(
                name=name,
                request_type=descriptor.input_type.full_name,
                scope=scope,
                streams_requests=descriptor.client_streaming,
                streams_responses=descriptor.server_streaming,
            )
    return methods

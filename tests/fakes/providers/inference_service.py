"""The inference service on a real gRPC server, with wire-format servers as its providers."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from pydantic import SecretStr
from tests.fakes.patience import patient_postgres
from tests.fakes.providers import anthropic_wire, openai_wire
from tests.fakes.providers.http_server import WireServer, serving

from janus_api.content.v1 import message_pb2 as content
from janus_api.inference.v1 import inference_service_pb2 as pb
from janus_api.inference.v1 import inference_service_pb2_grpc as rpc
from janus_api.inference.v1 import request_pb2
from janus_inference.app import mount
from janus_inference.settings import InferenceSettings
from janus_kit.migrations import migrate
from janus_kit.mount import Mount
from janus_kit.server import serve
from janus_kit.settings import RedisSettings, ServerSettings

KEY = "sk-test-very-secret"


@dataclass(frozen=True)
class Service:
    stub: rpc.InferenceServiceStub
    address: str
    mount: Mount
    openai: WireServer
    anthropic: WireServer

    def wire(self, provider: str) -> WireServer:
        return self.anthropic if provider == "anthropic" else self.openai

    async def stream(self, prompt: request_pb2.Prompt, **options: Any) -> list[Any]:
        """All events of a stream, as (kind, event), with their numbers checked."""
        call = self.stub.StreamGenerate(pb.StreamGenerateRequest(prompt=prompt), **options)
        events = [response.event async for response in call]
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
        kinds = [event.WhichOneof("event") for event in events]
        assert kinds[0] == "started"
        assert [kind for kind in kinds if kind in ("finished", "failed")] == [kinds[-1]]
        return [(kind, getattr(event, kind)) for kind, event in zip(kinds, events, strict=True)]

    async def generate(self, prompt: request_pb2.Prompt, **options: Any) -> pb.GenerateResponse:
        answer: pb.GenerateResponse = await self.stub.Generate(pb.GenerateRequest(prompt=prompt), **options)
        return answer


@asynccontextmanager
async def running(
    postgres_url: str, redis_url: str, *, beside: dict[str, dict[str, Any]] | None = None, **settings: Any
) -> AsyncIterator[Service]:
    """With providers `openai`, `anthropic`, `compatible` and `scripted`; each is asked once and no more.

    ``beside`` are further ones; they speak like OpenAI unless they are of kind `anthropic`.
    """
    async with AsyncExitStack() as stack:
        openai = await stack.enter_async_context(serving(openai_wire.application))
        anthropic = await stack.enter_async_context(serving(anthropic_wire.application))
        providers: dict[str, dict[str, Any]] = {
            "openai": {"kind": "openai", "base_url": f"{openai.url}/v1", "api_key": KEY},
            "compatible": {
                "kind": "openai_compatible",
                "base_url": f"{openai.url}/v1",
                "models": ["fake", "fake-embed"],
            },
            "anthropic": {"kind": "anthropic", "base_url": anthropic.url, "api_key": KEY},
        }
        for name, extra in (beside or {}).items():
            url = anthropic.url if extra.get("kind") == "anthropic" else f"{openai.url}/v1"
            providers[name] = {"base_url": url, "api_key": KEY, **extra}
        given = {
            "providers": providers,
            "default_model": "scripted/rehearsal",
            "scripted_pace_ms": 0,
            "routing": {"max_attempts": 1, "breaker_failures": 1000},
        }
        made = InferenceSettings.model_validate(given | settings)
        mounted = await stack.enter_async_context(inference_on(postgres_url, redis_url, made))
        server = ServerSettings(listen="127.0.0.1:0", lame_duck_s=0, drain_s=1)
        host = await stack.enter_async_context(serve([mounted], server))
        assert host.address is not None
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(host.address))
        yield Service(rpc.InferenceServiceStub(channel), host.address, mounted, openai, anthropic)


@asynccontextmanager
async def inference_on(postgres_url: str, redis_url: str, settings: InferenceSettings) -> AsyncIterator[Mount]:
    """The service on these stores, which are brought up to date."""
    postgres = patient_postgres(postgres_url)
    await migrate(postgres, ["janus_inference"])
    async with mount(settings, postgres=postgres, redis=RedisSettings(url=SecretStr(redis_url))) as mounted:
        yield mounted


def user(*parts: content.Part | str) -> content.Message:
    made = [content.Part(text=part) if isinstance(part, str) else part for part in parts]
    return content.Message(role=content.ROLE_USER, parts=made)


def prompt(text: str = "hello", **fields: Any) -> request_pb2.Prompt:
    fields.setdefault("messages", [user(text)])
    return request_pb2.Prompt(**fields)


@dataclass(frozen=True)
class Refusal:
    """A gRPC status with its details."""

    code: grpc.StatusCode
    reason: str
    metadata: dict[str, str]
    fields: list[str]
    retry_after: float | None
    text: str

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refusal":
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        return cls.of_status(status, error.code())

    @classmethod
    def of_status(cls, status: status_pb2.Status, code: grpc.StatusCode | None = None) -> "Refusal":
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        retry = error_details_pb2.RetryInfo()
        retry_after = None
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
            if detail.Unpack(retry):
                retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        assert info.domain == "janus"
        found = code or next(each for each in grpc.StatusCode if each.value[0] == status.code)
        fields = [violation.field for violation in bad.field_violations]
        return cls(found, info.reason, dict(info.metadata), fields, retry_after, str(status))

"""What a provider encrypted or signed goes back to that provider alone."""

from collections.abc import AsyncIterator

import pytest
from pydantic import ValidationError
from tests.fakes.providers.inference_service import Service, prompt, running, user

from janus_api.inference.v1 import request_pb2
from janus_inference.settings import InferenceSettings

THINKING = request_pb2.ReasoningOptions(effort=request_pb2.REASONING_EFFORT_HIGH)
ROUTING = {"max_attempts": 3, "backoff_s": 0.001, "breaker_failures": 1000}


@pytest.fixture
async def inference(postgres_url: str, redis_url: str) -> AsyncIterator[Service]:
    beside = {
        "other-openai": {"kind": "openai"},
        "same-openai": {"kind": "openai", "issuer": "openai"},
        "other-anthropic": {"kind": "anthropic"},
        "same-anthropic": {"kind": "anthropic", "issuer": "anthropic"},
    }
    async with running(postgres_url, redis_url, beside=beside, routing=ROUTING) as service:
        yield service


@pytest.mark.parametrize(
    ("first", "second", "issuer", "goes_back"),
    [
        ("openai", "openai", "openai", True),
        ("openai", "other-openai", "openai", False),
        ("other-openai", "other-openai", "other-openai", True),
        ("other-openai", "openai", "other-openai", False),
        ("openai", "same-openai", "openai", True),
        ("same-openai", "openai", "openai", True),
        ("openai", "anthropic", "openai", False),
        ("anthropic", "anthropic", "anthropic", True),
        ("anthropic", "other-anthropic", "anthropic", False),
        ("other-anthropic", "anthropic", "other-anthropic", False),
        ("anthropic", "same-anthropic", "anthropic", True),
    ],
)
async def test_reasoning_goes_back_to_its_issuer_alone(
    inference: Service, first: str, second: str, issuer: str, goes_back: bool
) -> None:
    answer = await inference.generate(prompt(model=f"{first}/fake;think=2", reasoning=THINKING))
    reasoning = answer.message.parts[0].reasoning
    assert reasoning.issuer == issuer
    proof = b"ZW5j" if first.endswith("openai") else reasoning.signature
    assert proof in reasoning.signature
    history = [user("hello"), answer.message, user("and again")]
    await inference.generate(prompt(model=f"{second}/fake", messages=history, reasoning=THINKING))
    wire = inference.anthropic if second.endswith("anthropic") else inference.openai
    assert (proof in wire.exchanges[-1].request.body) is goes_back


async def test_what_a_provider_refuses_as_foreign_another_may_answer(inference: Service) -> None:
    routing = request_pb2.Routing(fallbacks=["anthropic/fake"])
    foreign = "openai/fake;status=400;code=invalid_encrypted_content"
    events = await inference.stream(prompt(model=foreign, routing=routing))
    assert [kind for kind, _ in events[:2]] == ["started", "route_changed"]
    assert events[1][1].reason == "PROVIDER_REJECTED_REQUEST"
    assert len(inference.openai.exchanges) == 1


def test_an_issuer_is_of_one_kind() -> None:
    compatible = {"kind": "openai_compatible", "base_url": "http://localhost:1/v1", "issuer": "mine"}
    mixed = {"mine": {"kind": "anthropic"}, "local": compatible}
    with pytest.raises(ValidationError, match="provider 'local': the providers of issuer 'mine' must all be of one"):
        InferenceSettings.model_validate({"providers": mixed})
    InferenceSettings.model_validate({"providers": {"mine": compatible, "local": compatible}})


@pytest.mark.parametrize("issuer", ["Open AI", "-x", "x" * 65])
def test_an_issuer_is_a_name(issuer: str) -> None:
    with pytest.raises(ValidationError, match="issuer"):
        InferenceSettings.model_validate({"providers": {"o": {"kind": "openai", "issuer": issuer}}})

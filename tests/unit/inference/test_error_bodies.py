"""Refusals as real servers write them, from their bodies to what the caller is told."""

from types import SimpleNamespace
from typing import Any

import pytest

from janus_inference.adapters.upstream import refused
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.provider_errors import ProviderFailure, classify

TOO_LONG: list[tuple[str, Any, int | None, int | None]] = [
    (
        "anthropic, prompt",
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "prompt is too long: 208310 tokens > 200000 maximum",
            },
        },
        200_000,
        208_310,
    ),
    (
        "anthropic, prompt and room for the answer",
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "input length and `max_tokens` exceed context limit: 178959 + 64000 > 200000, "
                "decrease input length or `max_tokens` and try again",
            },
        },
        200_000,
        178_959,
    ),
    (
        "vllm",
        {
            "message": "This model's maximum context length is 32768 tokens. However, you requested 32000 output "
            "tokens and your prompt contains at least 769 input tokens, for a total of at least 32769 tokens.",
            "type": "BadRequestError",
            "param": "input_tokens",
            "code": 400,
        },
        32_768,
        769,
    ),
    (
        "vllm, room for the answer",
        {
            "object": "error",
            "message": "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context "
            "length is 4096 tokens and your request has 4000 input tokens (5000 > 4096 - 4000).",
            "type": "BadRequestError",
            "code": 400,
        },
        4096,
        4000,
    ),
    (
        "vllm, pictures",
        {
            "object": "error",
            "message": "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure "
            "that `max_model_len` is no smaller than the number of text tokens.",
            "type": "BadRequestError",
            "code": 400,
        },
        4096,
        5000,
    ),
    (
        "llama.cpp",
        {
            "code": 400,
            "message": "request (1952 tokens) exceeds the available context size (512 tokens), try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 1952,
            "n_ctx": 512,
        },
        512,
        1952,
    ),
    (
        "llama.cpp, whose words have no numbers",
        {
            "code": 400,
            "message": "the request exceeds the available context size, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 9000,
            "n_ctx": 4096,
        },
        4096,
        9000,
    ),
    ("z.ai", {"code": "1261", "message": "Prompt exceeds max length"}, None, None),
    ("bigmodel", {"code": "1261", "message": "Prompt 超长"}, None, None),
    ("ollama", "prompt too long; exceeded max context length by 1234 tokens", None, None),
    (
        "xai",
        "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
        131_072,
        537_812,
    ),
    (
        "openrouter",
        {
            "message": "This endpoint's maximum context length is 131072 tokens. However, you requested about 148000 "
            "tokens (130000 of text input, 18000 in the output).",
            "code": 400,
        },
        131_072,
        148_000,
    ),
    (
        "openrouter, for the server behind it",
        {
            "message": "Provider returned error",
            "code": 400,
            "metadata": {
                "raw": '{"type":"error","error":{"type":"invalid_request_error",'
                '"message":"prompt is too long: 213456 tokens > 200000 maximum"}}',
                "provider_name": "Anthropic",
            },
        },
        200_000,
        213_456,
    ),
    (
        "openrouter, without a code",
        {"message": "Input length 300000 exceeds the maximum allowed input length of 262144 tokens.", "code": 400},
        262_144,
        300_000,
    ),
    (
        "mistral",
        {
            "object": "error",
            "message": "Prompt contains 140000 tokens and 0 draft tokens, too large for model with 128000 maximum "
            "context length",
            "type": "invalid_request_prompt",
        },
        128_000,
        140_000,
    ),
    (
        "together",
        {"message": "The input (140000 tokens) is longer than the model's context length (131072 tokens)."},
        131_072,
        140_000,
    ),
    (
        "google",
        {
            "code": 400,
            "message": "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
            "status": "INVALID_ARGUMENT",
        },
        1_048_575,
        1_196_265,
    ),
    (
        "azure",
        {
            "message": "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 301213 "
            "tokens. Please reduce the length of the messages."
        },
        272_000,
        301_213,
    ),
    (
        "moonshot",
        {
            "message": "Invalid request: Your request exceeded model token limit: 262144 (requested: 300000)",
            "type": "invalid_request_error",
        },
        262_144,
        300_000,
    ),
    (
        "lm studio",
        "Trying to keep the first 5000 tokens when context overflows. However, the model is loaded with context length "
        "of only 4096 tokens, which is not enough.",
        4096,
        5000,
    ),
    ("alibaba", {"message": "Range of input length should be [1, 129024]"}, 129_024, None),
]


def refusal(status: int, body: Any) -> ProviderFailure:
    response = SimpleNamespace(headers={})
    return classify("upstream", "model", refused(SimpleNamespace(status_code=status, body=body, response=response)))


@pytest.mark.parametrize(("body", "limit", "asked"), [row[1:] for row in TOO_LONG], ids=[row[0] for row in TOO_LONG])
def test_a_prompt_that_is_too_long_is_told_from_a_malformed_one(
    body: Any, limit: int | None, asked: int | None
) -> None:
    failure = refusal(400, body)
    assert (failure.error.reason, failure.retryable, failure.elsewhere) == ("CONTEXT_TOO_LONG", False, True)
    said = [failure.error.metadata.get(name) for name in ("limit_tokens", "request_tokens")]
    assert said == [None if number is None else str(number) for number in (limit, asked)]


@pytest.mark.parametrize(
    "message",
    [
        "max_tokens: 64000 > 32000, which is the maximum allowed number of output tokens for claude",
        "messages.1.content.0.image.source.base64: image exceeds 5 MB maximum: 6291456 bytes > 5242880 bytes",
        "Unsupported parameter: context. Remove it and try again.",
    ],
)
def test_other_limits_are_not_the_context_window(message: str) -> None:
    assert refusal(400, {"message": message}).error.reason == "PROVIDER_REJECTED_REQUEST"


BILLING: list[tuple[int, Any]] = [
    (429, {"code": "1113", "message": "Insufficient balance or no resource package. Please recharge."}),
    (429, {"code": 1113, "message": "您的账户已欠费,请充值后重试"}),
    (429, {"type": "error", "error": {"type": "rate_limit_error", "code": "1113", "message": "Please recharge."}}),
    (429, {"code": "1309", "message": "Your plan has expired"}),
    (429, {"type": "exceeded_current_quota_error", "message": "Your account is suspended, please recharge"}),
    (429, {"message": "Insufficient balance"}),
    (400, {"code": "Arrearage", "message": "Access denied, please make sure your account is in good standing."}),
    (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API"}),
]


@pytest.mark.parametrize(("status", "body"), BILLING)
def test_an_account_without_credit_is_told_from_a_rate_limit(status: int, body: Any) -> None:
    failure = refusal(status, body)
    assert (failure.error.reason, failure.retryable) == ("PROVIDER_BILLING", False)
    assert failure.error.retry_after is None


@pytest.mark.parametrize("code", ["1302", "1303", "1305", "1308", "1310"])
def test_a_used_up_allowance_that_comes_back_is_a_rate_limit(code: str) -> None:
    failure = refusal(429, {"code": code, "message": "Usage limit reached for 5 hour."})
    assert (failure.error.reason, failure.retryable) == ("PROVIDER_RATE_LIMITED", True)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, "model 'llama9' not found, try pulling it first"),
        (404, {"error": "model 'llama9' not found"}),
        (404, {"message": 'model "llama9" not found, try pulling it first', "type": "api_error", "code": None}),
        (404, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError", "code": 404}),
        (400, {"code": "1211", "message": "Unknown Model, please check the model code."}),
    ],
)
def test_a_model_that_is_not_there_is_not_asked_again(status: int, body: Any) -> None:
    failure = refusal(status, body)
    assert (failure.error.reason, failure.retryable, failure.elsewhere) == ("MODEL_NOT_FOUND", False, True)


@pytest.mark.parametrize("body", [None, "404 page not found", {"detail": "Not Found"}, {"error": ["not", "a", "word"]}])
def test_an_address_without_an_api_may_have_one_later(body: Any) -> None:
    assert refusal(404, body).error.reason == "PROVIDER_UNAVAILABLE"


def test_input_that_z_ai_finds_unsafe_is_filtered() -> None:
    assert refusal(400, {"code": "1301", "message": "System detected potentially unsafe content"}).filtered


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ('{"code":"1261","message":"Prompt exceeds max length"}', "CONTEXT_TOO_LONG"),
        ('{"code":"1113","message":"Please recharge."}', "PROVIDER_BILLING"),
        ('{"code":"1305","message":"busy"}', "PROVIDER_RATE_LIMITED"),
        ('{"code":"1211","message":"Unknown Model"}', "MODEL_NOT_FOUND"),
        ('"the server fell over"', "PROVIDER_UNAVAILABLE"),
    ],
)
def test_within_a_stream_a_code_says_what_a_status_would(error: str, reason: str) -> None:
    reader = ChatReader("upstream", "model", "upstream", CallCheck({}))
    reader.feed(f'data: {{"error":{error}}}\n\n'.encode())
    assert reader.failure is not None
    assert reader.failure.error.reason == reason

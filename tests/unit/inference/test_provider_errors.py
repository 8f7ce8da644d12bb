"""What a provider's refusal becomes for the caller."""

import pytest

from janus_inference.provider_errors import (
    Refused,
    broken,
    classify,
    not_configured,
    retry_after_of,
    timed_out,
    unreachable,
)
from janus_kit.errors import InvalidArgument

# OpenRouter's words, llama.cpp's and Ollama's.
NOT_TAKEN = [
    (404, "No endpoints found that support image input"),
    (500, "image input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
    (500, "this model is missing data required for image input"),
    (500, "audio input is not supported - hint: if this is unexpected, you may need to provide the mmproj"),
]
ROWS = [
    (Refused(429, retry_after=7.5), "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED", True, 7.5),
    (Refused(429), "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED", True, 1.0),
    (Refused(429, code="insufficient_quota"), "FAILED_PRECONDITION", "PROVIDER_BILLING", False, None),
    (Refused(402), "FAILED_PRECONDITION", "PROVIDER_BILLING", False, None),
    (
        Refused(400, message="Your credit balance is too low"),
        "FAILED_PRECONDITION",
        "PROVIDER_BILLING",
        False,
        None,
    ),
    (Refused(529), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, 1.0),
    (Refused(500), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, 1.0),
    (Refused(503, retry_after=3), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, 3),
    (Refused(503, should_retry=False), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", False, 1.0),
    (Refused(529, should_retry=False, retry_after=0.005), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", False, 0.005),
    (Refused(429, should_retry=False), "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED", False, 1.0),
    (
        Refused(429, should_retry=False, retry_after=0.005),
        "RESOURCE_EXHAUSTED",
        "PROVIDER_RATE_LIMITED",
        False,
        0.005,
    ),
    (Refused(400, should_retry=False, retry_after=5), "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, None),
    (Refused(400, code="model_not_found"), "INVALID_ARGUMENT", "MODEL_NOT_FOUND", False, None),
    (Refused(408), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True, 1.0),
    (Refused(504), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True, 1.0),
    (Refused(504, retry_after=7.5), "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", True, 7.5),
    (Refused(401), "FAILED_PRECONDITION", "PROVIDER_AUTH", False, None),
    (Refused(403, type="permission_error"), "FAILED_PRECONDITION", "PROVIDER_AUTH", False, None),
    (Refused(404, code="model_not_found"), "INVALID_ARGUMENT", "MODEL_NOT_FOUND", False, None),
    (Refused(404), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, 1.0),
    (Refused(307), "UNAVAILABLE", "PROVIDER_UNAVAILABLE", True, 1.0),
    (Refused(400), "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, None),
    (Refused(422), "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, None),
    (Refused(400, code="context_length_exceeded"), "INVALID_ARGUMENT", "CONTEXT_TOO_LONG", False, None),
    *(
        (Refused(status, message=message), "INVALID_ARGUMENT", "PROVIDER_REJECTED_REQUEST", False, None)
        for status, message in NOT_TAKEN
    ),
]


@pytest.mark.parametrize(("said", "code", "reason", "retryable", "retry_after"), ROWS)
def test_every_status_has_its_meaning(
    said: Refused, code: str, reason: str, retryable: bool, retry_after: float | None
) -> None:
    failure = classify("upstream", "model", said)
    assert (failure.error.code, failure.error.reason) == (code, reason)
    assert failure.retryable is retryable
    assert failure.error.retry_after == retry_after
    assert failure.error.metadata["provider"] == "upstream"
    assert failure.error.metadata["upstream_status"] == str(said.status)


@pytest.mark.parametrize(
    ("message", "limit", "asked"),
    [
        (
            "This model's maximum context length is 128000 tokens. However, your messages resulted in 130,412 tokens.",
            "128000",
            "130412",
        ),
        ("prompt is too long: 208310 tokens > 200000 maximum", "200000", "208310"),
        (
            "input (723 tokens) is too large to process. increase the physical batch size (current batch size: 512)",
            "512",
            "723",
        ),
        ("the request exceeds the context window of this model", None, None),
    ],
)
def test_a_prompt_that_is_too_long_says_by_how_much(message: str, limit: str | None, asked: str | None) -> None:
    error = classify("upstream", "model", Refused(400, message=message)).error
    assert isinstance(error, InvalidArgument)
    assert error.reason == "CONTEXT_TOO_LONG"
    assert error.metadata.get("limit_tokens") == limit
    assert error.metadata.get("request_tokens") == asked
    assert error.violations[0].field == "prompt.messages"


def test_an_unknown_model_names_the_field() -> None:
    error = classify("upstream", "gpt-9", Refused(404, type="not_found_error")).error
    assert isinstance(error, InvalidArgument)
    assert error.violations[0].field == "prompt.model"
    assert error.metadata["model"] == "upstream/gpt-9"


@pytest.mark.parametrize("code", ["content_filter", "content_policy_violation"])
def test_a_content_filter_is_no_error(code: str) -> None:
    assert classify("upstream", "model", Refused(400, code=code)).filtered


def test_nothing_of_the_provider_s_text_is_passed_on() -> None:
    secret = "sk-very-secret and the prompt"
    failure = classify("upstream", "model", Refused(400, code=secret, type=secret, param=secret, message=secret))
    shown = f"{failure.error!r} {failure.error.message} {failure.error.metadata} {failure.detail} {failure}"
    assert "secret" not in shown


def test_identifiers_of_the_provider_are_passed_on() -> None:
    said = Refused(400, code="invalid_value", param="messages[3].content", message="no")
    assert classify("upstream", "model", said).error.metadata == {
        "provider": "upstream",
        "model": "model",
        "upstream_status": "400",
        "upstream_code": "invalid_value",
        "upstream_param": "messages[3].content",
    }


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 10.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:27:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2026 09:28:00 GMT", "date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 3600.0),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:10 GMT", "date": "yesterday"}, 10.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after-ms": "-1", "retry-after": "7"}, 7.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "9999999"}, 3600.0),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_either_unit(headers: dict[str, str], seconds: float | None) -> None:
    # 1792567680 is Wed, 21 Oct 2026 07:28:00 GMT.
    assert retry_after_of(headers, now=1_792_567_680.0) == seconds


ELSEWHERE = [
    (Refused(400, code="invalid_encrypted_content", type="invalid_request_error"), True),
    (Refused(400, message="messages.1.content.0: Invalid `signature` in `thinking` block"), True),
    (Refused(429), True),
    (Refused(500), True),
    (Refused(529), True),
    (Refused(408), True),
    (Refused(401), True),
    (Refused(403), True),
    (Refused(402), True),
    (Refused(404, code="model_not_found"), True),
    (Refused(400, code="context_length_exceeded"), True),
    (Refused(413, type="tokens", code="rate_limit_exceeded"), True),
    (Refused(503, should_retry=False), True),
    *((Refused(status, message=message), True) for status, message in NOT_TAKEN),
    (Refused(400), False),
    (Refused(422), False),
    (Refused(400, should_retry=True), False),
    (Refused(400, code="content_filter"), False),
]


@pytest.mark.parametrize(("said", "elsewhere"), ELSEWHERE)
def test_whether_another_target_may_succeed(said: Refused, elsewhere: bool) -> None:
    assert classify("upstream", "model", said).elsewhere is elsewhere


@pytest.mark.parametrize("leg", ["connect", "first_event", "idle", "total", "call"])
def test_time_that_is_up_for_the_whole_call_is_up_elsewhere_too(leg: str) -> None:
    assert timed_out("upstream", leg, 1).elsewhere is (leg not in ("total", "call"))


def test_no_connection_no_sense_and_no_key_are_one_target_s_trouble() -> None:
    assert unreachable("upstream").elsewhere
    assert broken("upstream", "cut").elsewhere
    assert not_configured("upstream").elsewhere


def test_what_the_provider_said_about_waiting_is_told_apart_from_our_default() -> None:
    told, silent = (classify("upstream", "model", Refused(429, retry_after=said)) for said in (7.5, None))
    assert (told.retry_after, told.error.retry_after) == (7.5, 7.5)
    assert (silent.retry_after, silent.error.retry_after) == (None, 1.0)


def test_more_than_a_minute_s_worth_at_once_is_not_retried() -> None:
    failure = classify("upstream", "model", Refused(413, type="tokens", code="rate_limit_exceeded"))
    assert (failure.error.reason, failure.retryable) == ("PROVIDER_RATE_LIMITED", False)


@pytest.mark.parametrize("status", [409, 425, 499])
def test_statuses_that_pass(status: int) -> None:
    failure = classify("upstream", "model", Refused(status))
    assert (failure.error.reason, failure.retryable) == ("PROVIDER_UNAVAILABLE", True)


@pytest.mark.parametrize(
    "message",
    [
        "Output blocked by content filtering policy",
        "Invalid prompt: your prompt was flagged as potentially violating our usage policy.",
    ],
)
def test_a_filter_that_is_only_named_in_words_is_a_filter(message: str) -> None:
    assert classify("upstream", "model", Refused(400, type="invalid_request_error", message=message)).filtered


def test_llama_cpp_says_that_a_prompt_is_too_long() -> None:
    said = Refused(400, type="exceed_context_size_error", message="the request exceeds the available context size")
    assert classify("upstream", "model", said).error.reason == "CONTEXT_TOO_LONG"


def test_a_time_limit_names_its_leg() -> None:
    error = timed_out("upstream", "idle", 30.0).error
    assert error.metadata["leg"] == "idle"

"""What a provider's failure means to the caller: one pure mapping for every provider.

``classify`` turns what a provider said (HTTP status, error code, headers) into
a ProviderFailure. Nothing of the provider's text is passed on, since it may
quote the prompt or the key; only codes and parameter names that look like
identifiers are.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import starmap
from typing import Any

from janus_inference import too_long
from janus_inference.families import family
from janus_kit.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    InvalidArgument,
    JanusError,
    ResourceExhausted,
    Unavailable,
)

DEFAULT_RETRY_AFTER_S = 1.0
_LONGEST_RETRY_AFTER_S = 3600.0
_MOST_SAID = 2_000

_IDENTIFIER = re.compile(r"[A-Za-z0-9_.\[\]-]{1,128}")
# Four digits are Z.ai's.
_TOO_LONG = {
    "context_length_exceeded",
    "string_above_max_length",
    "model_context_window_exceeded",
    "model_max_prompt_tokens_exceeded",
    "exceed_context_size_error",
    "1261",
}
_BILLING = {
    "insufficient_quota",
    "exceeded_current_quota_error",
    "billing_hard_limit_reached",
    "billing_error",
    "credit_balance_too_low",
    "Arrearage",
    "1113",
    "1309",
}
_BILLING_TEXT = re.compile(r"credit balance|insufficient balance", re.IGNORECASE)
_FILTERED_TEXT = re.compile(
    r"content filtering policy|flagged as potentially violating|content management policy", re.IGNORECASE
)
_FILTERED = {
    "content_filter",
    "content_policy_violation",
    "responsible_ai_policy_violation",
    "image_content_policy_violation",
    "bio_policy",
    "misalignment_policy_violation",
    "1301",
}
_NO_MODEL = {"model_not_found", "not_found_error", "unknown_model", "model_not_available", "1211"}
_NO_MODEL_TEXT = re.compile(r"\bmodel\b.{0,200}\b(?:not found|does not exist)", re.IGNORECASE | re.DOTALL)
# Encrypted reasoning or its proof that this account, or this server, did not issue: no other target is shown it.
_FOREIGN = {"invalid_encrypted_content"}
_FOREIGN_TEXT = re.compile(r"invalid [`'\"]?signature[`'\"]? in [`'\"]?(?:redacted_)?thinking", re.IGNORECASE)
# A kind of input that the model does not take, said with a status that means something else: 404 by OpenRouter, 500 by
# llama.cpp and Ollama.
_NOT_TAKEN_TEXT = re.compile(
    r"no endpoints found that support|\b(?:image|audio|video|file|document)s?(?: inputs?)? (?:is|are) not supported"
    r"|missing data required for (?:image|audio) input",
    re.IGNORECASE,
)
# A vector that cannot be said in JSON, by Ollama and by servers in Python.
_NO_NUMBER_TEXT = re.compile(r"unsupported value: [+-]?(?:NaN|Inf)|float values are not JSON compliant", re.IGNORECASE)
# The model wrote what its server cannot read; nothing is wrong with the request.
_MODEL_FAILED = {"tool_use_failed"}

# Statuses of the 4xx that say nothing against the request: an address without
# an API behind it, a lock, a connection that was closed.
_PASSING = {404, 409, 425, 499}

# Error types inside a stream carry no HTTP status; these are the ones they have outside of it.
STATUS_OF_TYPE = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "timeout_error": 504,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "requests": 429,
    "conflict_error": 409,
    "api_error": 500,
    "server_error": 500,
    "internal_server_error": 500,
    "service_unavailable": 503,
    "overloaded_error": 529,
    # Z.ai's codes, by its documentation.
    **dict.fromkeys(("1000", "1001", "1002", "1003", "1004"), 401),
    **dict.fromkeys(("1210", "1211", "1212", "1213", "1214", "1215", "1261", "1301"), 400),
    **dict.fromkeys(("1113", "1302", "1303", "1304", "1305", "1308", "1309", "1310", "1312", "1313"), 429),
}


# Where an EmbedRequest has what a prompt has elsewhere.
_EMBED_FIELDS = {"prompt.model": "model", "prompt.messages": "inputs", "prompt": "inputs"}

# What says that a target is in trouble whoever asks it.
_TROUBLE = {"unavailable", "unreachable", "broken", "timeout", "rate_limited", "auth", "billing"}
_UNUSABLE = "unusable"
_AFTER_WORK = {"broken", _UNUSABLE, "timeout", "content_filter", "cancelled", "too_large"}


class ProviderFailure(Exception):
    """An attempt that failed, already in the caller's terms.

    ``retryable``: another attempt may succeed. ``elsewhere``: it may well
    succeed at another target, whether or not it would at this one.
    ``retry_after``: seconds that the provider asked to wait, None when it said
    nothing. ``outcome`` is a bounded label for metrics. ``filtered``: not a
    failure to the caller but a finish reason. ``reached``: the provider got the
    request. ``said`` is the provider's own text, which may quote the prompt.
    """

    def __init__(
        self,
        error: JanusError,
        *,
        retryable: bool,
        outcome: str,
        elsewhere: bool = True,
        retry_after: float | None = None,
        filtered: bool = False,
        reached: bool = True,
        detail: str = "",
        said: str = "",
    ) -> None:
        super().__init__(error.message)
        self.said = said
        self.reached = reached
        self.error = error
        self.retryable = retryable
        self.outcome = outcome
        self.elsewhere = elsewhere
        self.retry_after = retry_after
        self.filtered = filtered
        self.detail = detail

    @property
    def is_trouble(self) -> bool:
        """Whether it says that the target is in trouble, whoever asks it."""
        return self.outcome in _TROUBLE

    @property
    def worked(self) -> bool:
        """Whether the provider may have worked on the request before it failed, so that tokens were used."""
        return self.reached and self.outcome in _AFTER_WORK


@dataclass(frozen=True, slots=True)
class Refused:
    """What a provider said when it refused: as much of it as it gave.

    ``limit_tokens`` and ``request_tokens`` where they have fields of their own,
    as llama.cpp's have.
    """

    status: int
    code: str = ""
    type: str = ""
    param: str = ""
    message: str = ""
    limit_tokens: int | None = None
    request_tokens: int | None = None
    retry_after: float | None = None
    should_retry: bool | None = None


def classify(provider: str, model: str, said: Refused) -> ProviderFailure:
    """The failure that a provider's refusal is."""
    status, codes = said.status, {said.code, said.type}
    who = _who(provider, said)
    retry_after = said.retry_after if said.retry_after is not None else DEFAULT_RETRY_AFTER_S

    def failure(error: JanusError, outcome: str, *, retryable: bool = False, elsewhere: bool = True) -> ProviderFailure:
        wanted = retryable if said.should_retry is None else said.should_retry
        if not (wanted or retryable):
            # What is not tried again here, since the provider advises so, may be so by the caller, later.
            error.retry_after = None
        detail = " ".join(sorted(code for code in codes if _IDENTIFIER.fullmatch(code)))
        return ProviderFailure(
            error,
            retryable=wanted,
            outcome=outcome,
            elsewhere=elsewhere,
            retry_after=said.retry_after,
            detail=f"status {status} {detail}",
            said=said.message[:_MOST_SAID],
        )

    if codes & _FILTERED or (status in (400, 403) and _FILTERED_TEXT.search(said.message)):
        rejected = _rejected(provider, model, who)
        return ProviderFailure(rejected, retryable=False, outcome="content_filter", elsewhere=False, filtered=True)
    if codes & _MODEL_FAILED:
        # Whatever is advised: the next answer is another one.
        return broken(provider, "the model wrote a tool call that cannot be read")
    if status == 402 or codes & _BILLING or (status in (400, 429) and _BILLING_TEXT.search(said.message)):
        text = f"provider '{provider}' says that the account is out of credit"
        return failure(FailedPrecondition("PROVIDER_BILLING", text, who, subject=provider), "billing")
    if status in (401, 403):
        text = f"provider '{provider}' refused the credential that this server has for it"
        return failure(FailedPrecondition("PROVIDER_AUTH", text, who, subject=provider), "auth")
    if status == 429 or (status == 413 and "rate_limit_exceeded" in codes):
        text = f"provider '{provider}' limits the rate of requests"
        quota = (f"provider:{provider}", "the provider's own limit for this server's account")
        error = ResourceExhausted("PROVIDER_RATE_LIMITED", text, who, retry_after, quota)
        # 413: more than is allowed in a minute at once, so that waiting does not help.
        return failure(error, "rate_limited", retryable=status == 429)
    if status in (408, 504):
        text = f"provider '{provider}' did not answer in its own time"
        late = DeadlineExceeded("first_event", text, who, retry_after)
        return failure(late, "timeout", retryable=True)
    if (status == 404 or status >= 500) and _NOT_TAKEN_TEXT.search(said.message):
        return failure(_rejected(provider, model, who), "rejected")
    if status == 500 and _NO_NUMBER_TEXT.search(said.message):
        return unusable(provider, "it holds a number that is not finite")
    if _is_no_model(said):
        rule = f"provider '{provider}' does not know this model"
        gone = InvalidArgument(
            "prompt.model",
            rule,
            reason="MODEL_NOT_FOUND",
            metadata={**who, "model": f"{provider}/{model}"},
        )
        return failure(gone, "rejected")
    if status in (400, 413, 422, 500) and (codes & _TOO_LONG or too_long.is_said(said.message)):
        return failure(_too_long(provider, model, said, who), "rejected")
    if 400 <= status < 500 and status not in _PASSING:
        is_foreign = bool(codes & _FOREIGN or _FOREIGN_TEXT.search(said.message))
        return failure(_rejected(provider, model, who), "rejected", elsewhere=is_foreign)
    text = f"provider '{provider}' is unavailable or overloaded"
    away = Unavailable("", text, retry_after=retry_after, reason="PROVIDER_UNAVAILABLE", metadata=who)
    return failure(away, "unavailable", retryable=True)


def unreachable(provider: str, detail: str = "") -> ProviderFailure:
    """No connection, or one that ended before an answer began."""
    error = Unavailable(
        "",
        f"provider '{provider}' cannot be reached",
        retry_after=DEFAULT_RETRY_AFTER_S,
        reason="PROVIDER_UNAVAILABLE",
        metadata={"provider": provider},
    )
    return ProviderFailure(error, retryable=True, outcome="unreachable", reached=False, detail=detail)


def broken(provider: str, what: str) -> ProviderFailure:
    """The answer was cut or makes no sense; ``what`` is our own wording."""
    error = Unavailable(
        "",
        f"the answer of provider '{provider}' broke off: {what}",
        retry_after=DEFAULT_RETRY_AFTER_S,
        reason="PROVIDER_STREAM_BROKEN",
        metadata={"provider": provider},
    )
    return ProviderFailure(error, retryable=True, outcome="broken", detail=what)


def unusable(provider: str, what: str) -> ProviderFailure:
    """The answer is whole and no good: it says something about what was asked, not about the provider's health."""
    error = Unavailable(
        "",
        f"the answer of provider '{provider}' cannot be used: {what}",
        retry_after=DEFAULT_RETRY_AFTER_S,
        reason="PROVIDER_STREAM_BROKEN",
        metadata={"provider": provider, "answer": _UNUSABLE},
    )
    return ProviderFailure(error, retryable=False, outcome=_UNUSABLE, detail=what)


def is_unusable(error: JanusError) -> bool:
    """Whether it is the error of ``unusable``."""
    return error.metadata.get("answer") == _UNUSABLE


def timed_out(provider: str, leg: str, seconds: float) -> ProviderFailure:
    """One of the time limits passed; ``leg`` names it. Those of the whole call pass for every target."""
    text = f"provider '{provider}' kept '{leg}' waiting for more than {seconds:g} s"
    return ProviderFailure(
        DeadlineExceeded(leg, text, {"provider": provider}, DEFAULT_RETRY_AFTER_S),
        retryable=True,
        outcome="timeout",
        elsewhere=leg not in ("total", "call"),
        reached=leg != "connect",
        detail=leg,
    )


def stopping(provider: str) -> ProviderFailure:
    """This server stops; the provider has nothing to do with it."""
    error = Unavailable("inference", "the server that worked on the answer stops", reason="DRAINING")
    return ProviderFailure(
        error, retryable=True, elsewhere=False, outcome="cancelled", detail=f"asking '{provider}' was ended by the stop"
    )


def not_configured(provider: str) -> ProviderFailure:
    """There is no credential for the provider."""
    text = f"no credential is configured for provider '{provider}'"
    error = FailedPrecondition("PROVIDER_AUTH", text, {"provider": provider}, subject=provider)
    return ProviderFailure(error, retryable=False, outcome="auth", reached=False)


def of_embedding(error: JanusError) -> JanusError:
    """The same in the terms of who has no prompt but texts to embed."""
    if not isinstance(error, InvalidArgument):
        return error
    named = [(_EMBED_FIELDS.get(field, field), rule) for field, rule in error.violations]
    return InvalidArgument.of(starmap(FieldViolation, named), reason=error.reason, metadata=error.metadata)


def retry_after_of(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds from ``retry-after-ms`` or ``retry-after``, a number or a date, an hour at most; None when not said.

    A date is counted from the answer's own ``date``, so that clocks need not
    agree; without one from ``now``, in seconds since 1970, default the clock's.
    """
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if seconds >= 0:
            return min(seconds, _LONGEST_RETRY_AFTER_S)
    until = _date(headers.get("retry-after", ""))
    if until is None:
        return None
    sent = _date(headers.get("date", ""))
    if sent is None:
        sent = time.time() if now is None else now
    return min(max(0.0, until - sent), _LONGEST_RETRY_AFTER_S)


def is_flagged(error: Mapping[str, Any]) -> bool:
    """Whether a router says with its error that moderation refused the input."""
    about = error.get("metadata")
    return isinstance(about, Mapping) and isinstance(about.get("reasons"), list) and "flagged_input" in about


def status_in(code: object) -> int | None:
    """The HTTP status that a code is in digits; None for any other code."""
    return int(code) if isinstance(code, str) and re.fullmatch(r"[45]\d\d", code) else None


def _date(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _who(provider: str, said: Refused) -> dict[str, str]:
    who = {"provider": provider}
    if said.status:
        who["upstream_status"] = str(said.status)
    names = {"upstream_code": said.code or said.type, "upstream_param": said.param}
    return who | {key: name for key, name in names.items() if _IDENTIFIER.fullmatch(name)}


def _is_no_model(said: Refused) -> bool:
    """A 404 without a word of a model is an address without an API behind it."""
    if said.status == 404:
        return bool(said.type or said.code or _NO_MODEL_TEXT.search(said.message))
    return said.status == 400 and said.code in _NO_MODEL


def _rejected(provider: str, model: str, who: dict[str, str]) -> InvalidArgument:
    return InvalidArgument(
        "prompt",
        f"provider '{provider}' refused the request as malformed",
        reason="PROVIDER_REJECTED_REQUEST",
        metadata={**who, "model": model},
    )


def _too_long(provider: str, model: str, said: Refused, who: dict[str, str]) -> InvalidArgument:
    limit, asked = too_long.numbers(said.message)
    limit = said.limit_tokens or limit or family(model).context_window
    asked = said.request_tokens or asked
    names = {"limit_tokens": limit, "request_tokens": asked}
    numbers = {name: str(number) for name, number in names.items() if number is not None}
    rule = f"is longer than the context window of model '{model}' of provider '{provider}'"
    if limit is not None:
        rule += f" ({limit} tokens)"
    return InvalidArgument(
        "prompt.messages", rule, reason="CONTEXT_TOO_LONG", metadata={**who, "model": model, **numbers}
    )

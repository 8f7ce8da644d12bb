"""A prompt that is too long, as providers say it in words: that it is, how much they take, how much it was.

Most have no code for it, and of those that have, most say the numbers only here.
"""

import re

_N = r"(\d[\d,]{2,})"
_SAID = re.compile(
    r"context length|context window|context_length_exceeded|prompt is too long|input is too long"
    r"|too many input tokens|too many tokens: size limit exceeded|exceeds? (?:the )?(?:available )?context"
    r"|input tokens exceed the configured limit"
    # llama.cpp, of a text to embed
    r"|input (?:\(\d+ tokens\) )?is too large to process"
    # vLLM; xAI; OpenRouter; Google
    r"|maximum model length|maximum prompt length|maximum allowed input length|maximum number of tokens allowed"
    # Copilot; Moonshot; Alibaba; Z.ai
    r"|token count of \d+ exceeds|model token limit|range of input length|prompt exceeds max length",
    re.IGNORECASE,
)
_LIMIT = re.compile(
    r"(?:maximum(?: (?:context|model|prompt|allowed input) length| number of tokens allowed)?(?: is| of)?"
    r"|limit of|current batch size:|token limit:|up to|max of|context (?:size|length)(?: of only)?"
    r"|length should be \[\d+,|>)"
    rf"\s*\(?{_N}|{_N} maximum context length",
    re.IGNORECASE,
)
# By how much it is too long is no length.
_ASKED = re.compile(
    rf"context limit: {_N} \+|(?:\(length|\(requested:|token count|token count of|input length) \(?{_N}"
    rf"|(?<!\bby )\b{_N} (?:input |prompt )?tokens?\b",
    re.IGNORECASE,
)


def is_said(message: str) -> bool:
    """Whether a message says that the prompt is longer than the model takes."""
    return _SAID.search(message) is not None


def numbers(message: str) -> tuple[int | None, int | None]:
    """The most tokens that are taken, and those that were sent; None for what is not said."""
    limit = next((_number(found) for found in _LIMIT.finditer(message)), None)
    asked = (_number(found) for found in _ASKED.finditer(message))
    return limit, next((number for number in asked if number != limit), None)


def _number(found: re.Match[str]) -> int:
    return int(next(group for group in found.groups() if group is not None).replace(",", ""))

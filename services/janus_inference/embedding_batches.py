"""Texts to embed, cut into requests that a provider takes, and the bound on what comes back."""

from collections.abc import Sequence

from janus_inference.accounting import estimated_text_tokens
from janus_kit.errors import InvalidArgument

MAX_VECTOR_BYTES = 15 * 1024 * 1024
"""All vectors of one answer, as 32-bit floats: what a message has room for."""
_BYTES_PER_NUMBER = 4


def tokens_of(inputs: Sequence[str]) -> int:
    """Tokens of texts, guessed from their size."""
    return sum(map(estimated_text_tokens, inputs))


def batches(inputs: Sequence[str], most_inputs: int, most_tokens: int) -> list[Sequence[str]]:
    """In order, each within both bounds; a text that is too large by itself stands alone, for the provider to judge."""
    made: list[Sequence[str]] = []
    begin = size = 0
    for index, text in enumerate(inputs):
        tokens = estimated_text_tokens(text)
        if index > begin and (index - begin >= most_inputs or size + tokens > most_tokens):
            made.append(inputs[begin:index])
            begin, size = index, 0
        size += tokens
    return [*made, inputs[begin:]]


def require_room(count: int, dimensions: int | None) -> None:
    """Raises InvalidArgument when so many vectors of this length are more than one answer holds."""
    if dimensions is not None and count * dimensions * _BYTES_PER_NUMBER > MAX_VECTOR_BYTES:
        most = MAX_VECTOR_BYTES // (_BYTES_PER_NUMBER * dimensions)
        rule = f"must be at most {most} for vectors of {dimensions} dimensions: all vectors together hold 15 MiB"
        raise InvalidArgument("inputs", rule)

"""What a prompt asks for, as attributes of a span; its words only where they are wanted."""

from janus_inference.model import JsonFormat, JsonSchemaFormat, Prompt
from janus_inference.telemetry import content
from janus_kit.telemetry import names
from janus_kit.telemetry.tracing import Attributes, AttributeValue


def asked(prompt: Prompt, generation_id: str, attempt: int, *, with_content: bool) -> Attributes:
    """Attributes of one attempt at this prompt. Stop sequences are the caller's words, hence content."""
    sampling = prompt.sampling
    found: dict[str, AttributeValue | None] = {
        names.GENERATION_ID: generation_id,
        names.ATTEMPT_NUMBER: attempt,
        names.GEN_AI_REQUEST_MAX_TOKENS: prompt.max_output_tokens,
        names.GEN_AI_REQUEST_TEMPERATURE: sampling.temperature,
        names.GEN_AI_REQUEST_TOP_P: sampling.top_p,
        names.GEN_AI_REQUEST_TOP_K: sampling.top_k,
        names.GEN_AI_REQUEST_FREQUENCY_PENALTY: sampling.frequency_penalty,
        names.GEN_AI_REQUEST_PRESENCE_PENALTY: sampling.presence_penalty,
        names.GEN_AI_REQUEST_SEED: sampling.seed,
    }
    if isinstance(prompt.response_format, JsonFormat | JsonSchemaFormat):
        found[names.GEN_AI_OUTPUT_TYPE] = "json"
    if with_content:
        found |= content.asked(prompt)
    return {name: value for name, value in found.items() if value is not None}

"""A whole answer of the inference contract as a chat completion."""

from typing import Any

from janus_api.content.v1 import message_pb2 as content
from janus_api.content.v1 import usage_pb2
from janus_api.inference.v1 import event_pb2
from janus_api.inference.v1 import inference_service_pb2 as pb

# OpenAI has no word for a paused turn; "length" tells clients that the answer is not whole.
_FINISH = {
    event_pb2.FINISH_REASON_LENGTH: "length",
    event_pb2.FINISH_REASON_PAUSE: "length",
    event_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    event_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}


def finish_reason(reason: event_pb2.FinishReason.ValueType) -> str:
    """OpenAI's word for why a model stopped."""
    return _FINISH.get(reason, "stop")


def completion_id(generation_id: str) -> str:
    """The id of a chat completion; holds the generation's, which logs and usage records have."""
    return f"chatcmpl-{generation_id}"


def completion(response: pb.GenerateResponse, created: int) -> dict[str, Any]:
    """The answer as a `chat.completion`; ``created`` in Unix seconds.

    Reasoning, citations and providers' own blocks have no place in Chat
    Completions and are left out; gRPC clients get them.
    """
    texts, refusals, calls = [], [], []
    for part in response.message.parts:
        match part.WhichOneof("kind"):
            case "text":
                texts.append(part.text)
            case "refusal":
                refusals.append(part.refusal)
            case "tool_call":
                calls.append(_call(part.tool_call))
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "".join(texts) if texts or not (refusals or calls) else None,
        "refusal": "".join(refusals) if refusals else None,
    }
    if calls:
        message["tool_calls"] = calls
    return {
        "id": completion_id(response.generation_id),
        "object": "chat.completion",
        "created": created,
        "model": f"{response.provider}/{response.model}",
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": finish_reason(response.finish_reason),
            }
        ],
        "usage": usage(response.usage),
    }


def usage(used: usage_pb2.Usage) -> dict[str, Any]:
    """Tokens in OpenAI's form, where cached ones are part of the prompt's."""
    prompt = used.input_uncached_tokens + used.cache_read_tokens + used.cache_write_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": used.output_tokens,
        "total_tokens": prompt + used.output_tokens,
        "prompt_tokens_details": {
            "cached_tokens": used.cache_read_tokens,
            "cache_write_tokens": used.cache_write_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
    }


def _call(call: content.ToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments_json},
    }

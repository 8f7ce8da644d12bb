"""What the contract offers and this version does not do yet: refused by name, never ignored."""

from janus_inference.model import Prompt
from janus_kit.errors import Unimplemented


def refuse_unbuilt(prompt: Prompt) -> None:
    """Raises Unimplemented for the first feature of the prompt that is not built."""
    asked = {
        "prompt.resumable": prompt.resumable,
        "prompt.linger": prompt.linger is not None,
        "prompt.request_id": bool(prompt.request_id),
        "prompt.cache": prompt.cache.read or prompt.cache.write,
        "prompt.routing.fallbacks": bool(prompt.routing.fallbacks),
        "prompt.routing.hedge_after": prompt.routing.hedge_after is not None,
        "prompt.sampling.top_logprobs": prompt.sampling.top_logprobs is not None,
        "prompt.reasoning.summary": prompt.reasoning is not None and prompt.reasoning.summary,
    }
    for feature, wanted in asked.items():
        if wanted:
            raise Unimplemented(
                message=f"'{feature}' is not implemented in this version", metadata={"feature": feature}
            )

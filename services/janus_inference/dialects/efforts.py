"""How much to think, in the words that a model takes."""

from janus_inference.dialects.capabilities import unsupported
from janus_inference.families import Family
from janus_inference.model import Effort

FIELD = "prompt.reasoning.effort"


def effort_word(effort: Effort, model: str, words: tuple[str, ...] | None) -> str | None:
    """The model's word for an effort; None when nothing need be said.

    ``words`` are those that it takes, least first; None when they are not
    known, and then the effort's own name is tried. Raises InvalidArgument for
    what the model cannot do.
    """
    if words is None:
        return str(effort.value)
    if not words:
        if effort is Effort.NONE:
            return None
        raise unsupported(model, "REASONING", FIELD, "this model does not think before it speaks")
    if effort is Effort.MINIMAL:
        return next((word for word in words if word != "none"), None)
    if effort.value in words:
        return str(effort.value)
    if effort is not Effort.NONE and "default" in words:
        return "default"
    rule = "this model cannot be told not to think" if effort is Effort.NONE else "this model takes no such effort"
    raise unsupported(model, "REASONING", FIELD, f"{rule}; it takes {', '.join(words)}")


def refuse_quiet(model: str, known: Family, field: str) -> None:
    """Raises InvalidArgument for a model that always thinks."""
    if not known.quiet:
        raise unsupported(model, "REASONING", field, "this model cannot be told not to think")

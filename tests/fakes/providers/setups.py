"""Short ways to a prompt and to a generation over one provider."""

from typing import Any

from janus_inference.events import Event
from janus_inference.generation import Generation, Limits
from janus_inference.model import Message, Prompt, Role, Text
from janus_inference.ports import Provider
from janus_inference.routing import ProviderModels, Routes
from janus_inference.standing import Standings
from janus_kit.clock import SystemClock

NAME = "upstream"


def prompt(text: str = "hello", **fields: Any) -> Prompt:
    """One user message, for ``upstream/fake`` unless said otherwise."""
    fields.setdefault("model", f"{NAME}/fake")
    return Prompt((Message(Role.USER, (Text(text),)),), **fields)


def generation(provider: Provider, limits: Limits | None = None) -> Generation:
    """A generation that can ask any model of this one provider."""
    routes = Routes({NAME: ProviderModels(frozenset(), frozenset(), True)}, {}, f"{NAME}/fake")
    return Generation({NAME: provider}, routes, limits or Limits(), Standings(SystemClock()))


async def events_of(using: Generation, asked: Prompt) -> list[Event]:
    """All events, with their numbers checked."""
    numbered = [each async for each in using.run(asked)]
    assert [each.sequence for each in numbered] == list(range(1, len(numbered) + 1))
    return [each.event for each in numbered]

"""What is read without parsing each event is what parsing each of them would have said."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_inference.dialects import json_text, openai_chat_stream
from janus_inference.dialects.alike import Alike
from janus_inference.dialects.anthropic_stream import MessagesReader
from janus_inference.dialects.openai_chat_stream import ChatReader
from janus_inference.dialects.openai_responses_stream import ResponsesReader
from janus_inference.dialects.parts import CallCheck
from janus_inference.dialects.reader import StreamReader
from janus_inference.events import ProviderEvent, ReasoningDelta, TextDelta


class NothingIsAlike(Alike):
    """So that every event is parsed."""

    def take(self, data: bytes, events: list[ProviderEvent]) -> bytes:
        return data


def chat() -> StreamReader:
    return ChatReader("upstream", "model", "upstream", CallCheck({}))


def messages() -> StreamReader:
    return MessagesReader("upstream", "model", "upstream", CallCheck({}))


def read(make: Callable[[], StreamReader], chunks: list[bytes], *, parse_all: bool = False) -> tuple[Any, ...]:
    """All that a stream says, however its pieces were joined, and how it ended."""
    reader = make()
    if parse_all:
        reader._alike = NothingIsAlike()
    said: list[Any] = []
    for event in [*itertools.chain.from_iterable(map(reader.feed, chunks)), *reader.close()]:
        if isinstance(event, TextDelta) and not event.logprobs:
            form: tuple[Any, ...] = ("text", event.part_index)
            text = event.text
        elif isinstance(event, ReasoningDelta) and event.text is not None:
            form, text = ("reasoning", event.part_index), event.text
        else:
            said.append(event)
            continue
        if said and isinstance(said[-1], list) and said[-1][0] == form:
            said[-1][1] += text
        else:
            said.append([form, text])
    failure = reader.failure and (reader.failure.error.reason, reader.failure.detail, str(reader.failure.error))
    return said, reader.whole, failure, reader.unknown


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """In pieces; as many as asked for, at places that a stream of any size has."""
    ends = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


texts = st.one_of(
    st.sampled_from(["token ", " ", "", "\n\n", '"', "\\", "Zürich 🐎", "\u2028", "…probe", '"},"x":"', "data: {}"]),
    st.sampled_from(["\ud83d", "a\ud83d", "\udc0e", "\udc0eb", "\udc0e\ud83d"]),
    st.text(max_size=6),
)


@st.composite
def frames(draw: st.DrawFn, body: dict[str, Any], name: str = "") -> bytes:
    """One event as some server might write it, rarely as none should."""
    spaced, escaped = draw(st.sampled_from([(False, False)] * 6 + [(True, True), (False, True), (True, False)]))
    data = json.dumps(body, ensure_ascii=escaped, separators=(", ", ": ") if spaced else (",", ":"))
    raw = data.encode("utf-8", "surrogatepass")
    line = draw(st.sampled_from(["\n"] * 8 + ["\r\n", "\r"])).encode()
    odd = draw(st.integers(0, 60))
    if odd == 0:
        raw = raw.replace(b"token", b"tok\xffen")
    elif odd == 1:
        raw = raw.replace(b"token", b"tok\x01en")
    elif odd == 2:
        raw = raw.replace(b"token", b"\\ud83d")
    elif odd == 3:
        raw = raw.replace(b"token", b"\\u0000")
    elif odd == 4:
        raw = raw[:-1]
    head = b"event: " + name.encode() + line if name else b""
    if odd == 5:
        head += b": ping" + line
    elif odd == 6:
        return head + b"data: " + raw + line
    return head + b"data: " + raw + line + line


@st.composite
def chat_streams(draw: st.DrawFn) -> bytes:
    shared = draw(st.sampled_from([{}, {"role": "assistant"}, {"refusal": None, "tool_calls": None}]))
    whole = b""
    for _ in range(draw(st.integers(1, 12))):
        text, kind = draw(texts), draw(st.integers(0, 14))
        choice: dict[str, Any] = {"index": 0, "delta": {**shared, "content": text}, "finish_reason": None}
        body: dict[str, Any] = {"id": "c1", "choices": [choice], "usage": None}
        if kind == 1:
            choice["delta"] = {**shared, "content": None, "reasoning_content": text}
        elif kind == 2:
            choice["index"] = 1
        elif kind == 3:
            body["usage"] = {"prompt_tokens": 1, "completion_tokens": 2}
        elif kind == 4:
            choice["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}]}
        elif kind == 5:
            choice["delta"] = {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f", "arguments": text}}]}
        elif kind == 6:
            choice["finish_reason"] = "length"
        elif kind == 7:
            choice["delta"] = {"content": text, "reasoning": text}
        elif kind == 8:
            body = {"error": {"message": text, "code": 503}}
        whole += draw(frames(body))
    return whole + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@st.composite
def messages_streams(draw: st.DrawFn) -> bytes:
    def event(kind: str, **more: Any) -> bytes:
        return draw(frames({"type": kind, **more}, kind))

    whole = event("message_start", message={"id": "m", "model": "x", "usage": {"input_tokens": 3, "output_tokens": 1}})
    for index, kind in enumerate(draw(st.lists(st.sampled_from(["text", "thinking", "tool_use"]), max_size=4))):
        opening = {"tool_use": {"id": "t", "name": "f", "input": {}}}.get(kind, {kind: ""})
        whole += event("content_block_start", index=index, content_block={"type": kind, **opening})
        field = {"text": ("text_delta", "text"), "thinking": ("thinking_delta", "thinking")}.get(
            kind, ("input_json_delta", "partial_json")
        )
        for text in draw(st.lists(texts, max_size=6)):
            whole += event("content_block_delta", index=index, delta={"type": field[0], field[1]: text})
        whole += event("content_block_stop", index=index)
    whole += event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9})
    return whole + event("message_stop")


@given(chat_streams(), st.lists(st.integers(0, 4_000), max_size=12))
def test_chat_chunks_say_the_same_as_when_each_is_parsed(stream: bytes, places: list[int]) -> None:
    assert read(chat, cut(stream, places)) == read(chat, [stream], parse_all=True)


@given(messages_streams(), st.lists(st.integers(0, 4_000), max_size=12))
def test_messages_events_say_the_same_as_when_each_is_parsed(stream: bytes, places: list[int]) -> None:
    assert read(messages, cut(stream, places)) == read(messages, [stream], parse_all=True)


def chunk(text: str, **more: Any) -> bytes:
    body = {"id": "c1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}], **more}
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def parsed_of(monkeypatch: pytest.MonkeyPatch, pieces: list[bytes]) -> tuple[list[ProviderEvent], int]:
    """What a stream says, and how many of its events were parsed."""
    parsed: list[bytes] = []

    def counting(data: bytes, halves: json_text.Halves) -> dict[str, Any]:
        parsed.append(data)
        return json_text.parse_object(data, halves)

    monkeypatch.setattr(openai_chat_stream, "parse_object", counting)
    reader = chat()
    return [event for piece in pieces for event in reader.feed(piece)], len(parsed)


def test_only_the_first_of_the_events_that_are_alike_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = [chunk(word) for word in ("a", "b\n", 'c"', "ü", "d\\", "e")]
    events, parsed = parsed_of(monkeypatch, [words[0], words[1], b"".join(words[2:])])
    assert events == [TextDelta(0, "a"), TextDelta(0, "b\n"), TextDelta(0, 'c"üd\\e')]
    assert parsed == 1


def test_of_an_answer_that_comes_all_at_once_only_the_first_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    opening, words = chunk(""), [chunk(f"{number} ") for number in range(20)]
    events, parsed = parsed_of(monkeypatch, [b"".join([opening, *words])])
    assert events == [TextDelta(0, "0 "), TextDelta(0, "".join(f"{number} " for number in range(1, 20)))]
    # The one without text, from which nothing can be learned, and the first that has some.
    assert parsed == 2


def test_an_event_that_a_chunk_ends_within_is_read_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b"".join(chunk(f"{number} ") for number in range(20))
    first = len(chunk("0 "))
    pieces = [whole[:first], *(whole[place : place + 97] for place in range(first, len(whole), 97))]
    events, parsed = parsed_of(monkeypatch, pieces)
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "".join(
        f"{number} " for number in range(20)
    )
    # The first, and one whose blank line was cut in two.
    assert parsed == 2


def test_a_server_that_says_something_new_in_every_event_is_parsed_and_soon_not_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learned: list[bytes] = []
    learn = Alike.learn

    def counting(self: Alike, name: bytes, data: bytes, *more: Any) -> None:
        learned.append(data)
        learn(self, name, data, *more)

    monkeypatch.setattr(Alike, "learn", counting)
    events, parsed = parsed_of(monkeypatch, [chunk("x", obfuscation="y" * number) for number in range(30)])
    assert (len(events), parsed, len(learned)) == (30, 30, 4)


def test_a_second_text_at_the_same_place_is_not_taken_for_the_first() -> None:
    # The last of two equal names counts: nothing may be concluded from the first.
    twice = b'data: {"choices":[{"delta":{"content":"%b","content":"%b"}}]}\n\n'
    reader = chat()
    events = [event for pair in ((b"a", b"a"), (b"b", b"a"), (b"c", b"a")) for event in reader.feed(twice % pair)]
    assert events == [TextDelta(0, "a")] * 3


def responses() -> StreamReader:
    return ResponsesReader("upstream", "model", "upstream", CallCheck({}))


def chat_delta(text: str, field: str) -> dict[str, Any]:
    delta = {"tool_calls": [{"index": 0, "function": {"arguments": text}}]} if field == "arguments" else {field: text}
    return {"choices": [{"index": 0, "delta": delta}]}


def messages_delta(text: str, field: str) -> dict[str, Any]:
    kind = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}[field]
    return {"type": "content_block_delta", "index": 0, "delta": {"type": kind, field: text}}


def responses_delta(text: str, field: str) -> dict[str, Any]:
    return {"type": f"response.{field}.delta", "output_index": 0, "content_index": 0, "summary_index": 0, "delta": text}


BEGUN_CALL = {"tool_calls": [{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]}
ITEM = {"type": "function_call", "id": "i", "call_id": "c", "name": "f"}


def begun(kind: str, **more: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": 0, "content_block": {"type": kind, **more}}


CUT_TEXTS: list[tuple[Any, Any, str, list[dict[str, Any]]]] = [
    (chat, chat_delta, "content", []),
    (chat, chat_delta, "reasoning", []),
    (chat, chat_delta, "reasoning_content", []),
    (chat, chat_delta, "refusal", []),
    (chat, chat_delta, "arguments", [{"choices": [{"index": 0, "delta": BEGUN_CALL}]}]),
    (messages, messages_delta, "text", [begun("text", text="")]),
    (messages, messages_delta, "thinking", [begun("thinking", thinking="")]),
    (messages, messages_delta, "partial_json", [begun("tool_use", id="a", name="f", input={})]),
    (responses, responses_delta, "output_text", []),
    (responses, responses_delta, "refusal", []),
    (responses, responses_delta, "reasoning_text", []),
    (responses, responses_delta, "reasoning_summary_text", []),
    (
        responses,
        responses_delta,
        "function_call_arguments",
        [{"type": "response.output_item.added", "output_index": 0, "item": ITEM}],
    ),
]


@pytest.mark.parametrize(("make", "delta", "field", "before"), CUT_TEXTS)
@given(text=st.text(st.sampled_from('aü🐎😀\n"')), cuts=st.sets(st.integers(1, 20)), joined=st.booleans())
def test_a_text_that_is_cut_by_utf_16_is_whole(
    make: Callable[[], StreamReader], delta: Any, field: str, before: list[Any], text: str, cuts: set[int], joined: bool
) -> None:
    units = text.encode("utf-16-le")
    ends = [0, *sorted(2 * cut for cut in cuts if 2 * cut < len(units)), len(units)]
    pieces = [units[a:b].decode("utf-16-le", "surrogatepass") for a, b in itertools.pairwise(ends)]
    chunks = [b"data: %b\n\n" % json.dumps(each).encode() for each in (*before, *(delta(p, field) for p in pieces))]
    reader = make()
    events = [event for each in ([b"".join(chunks)] if joined else chunks) for event in reader.feed(each)]
    assert reader.failure is None
    said = "".join(
        getattr(event, name) or ""
        for event in events
        for name in ("text", "summary", "fragment")
        if hasattr(event, name)
    )
    assert said == text

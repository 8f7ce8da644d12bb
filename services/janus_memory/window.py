"""Working memory: the newest turns that fit a budget, tool calls with their results."""

from collections.abc import Collection, Sequence

from janus_memory.model import Turn

_CHARS_PER_TOKEN = 4
_MESSAGE_TOKENS = 4
MAX_BYTES = 3 * 1024 * 1024
"""Most bytes of an answer's turns: a gRPC client takes 4 MiB unless it is told otherwise."""
# Turns that belong together may be more than that if nothing newer is shown; up
# to what this version's own clients take.
_MAX_WHOLE_BYTES = 4 * MAX_BYTES
# Ids, scope and times of a turn, at their longest.
_FRAME_BYTES = 768


def estimate_tokens(text: str) -> int:
    """Tokens of a text, estimated: four characters of ASCII each, one of anything else.

    Errs on the high side for languages whose words a tokenizer knows well.
    """
    if text.isascii():
        return -(-len(text) // _CHARS_PER_TOKEN)
    plain = len(text.encode("ascii", "ignore"))
    return -(-plain // _CHARS_PER_TOKEN) + len(text) - plain


def message_tokens(texts: Sequence[str], attachments: int = 0) -> int:
    """Tokens of a message: its texts, its frame, and 800 for each image or document."""
    return _MESSAGE_TOKENS + sum(map(estimate_tokens, texts)) + 800 * attachments


def newest(turns: Sequence[Turn], max_tokens: int, max_messages: int, max_bytes: int = MAX_BYTES) -> list[Turn]:
    """The longest run of newest turns within all budgets that parts no call from its result.

    The newest turn, with those that it cannot be parted from, may exceed the bytes.

    ``turns`` are oldest first. A result whose call is not among them would be
    cut from it, so the run begins after such a result.
    """
    made_at: dict[str, int] = {}
    # need[i]: the smallest place that a run holding turn i may begin at.
    need: list[int] = []
    for place, turn in enumerate(turns):
        earliest = place
        for call in turn.results:
            earliest = min(earliest, made_at.get(call, -1))
        need.append(earliest)
        for call in turn.calls:
            made_at[call] = place
    start, best, tokens, size = len(turns), len(turns), 0, 0
    reach = len(turns)
    while start > 0:
        start -= 1
        tokens += turns[start].tokens
        if tokens > max_tokens or len(turns) - start > max_messages or need[start] < 0:
            break
        size += _FRAME_BYTES + len(turns[start].content) + len(turns[start].metadata_json.encode())
        if size > (max_bytes if best < len(turns) else _MAX_WHOLE_BYTES):
            break
        reach = min(reach, need[start])
        if reach >= start:
            best = start
    return list(turns[best:])


def unparted(turns: Sequence[Turn], answered: Collection[str] = ()) -> list[Turn]:
    """Turns without those that belong to one that is not among them: of a result its call, of a call its result.

    ``answered`` are calls whose result is on record; another still waits for it, and stays.
    """
    kept = list(turns)
    while True:
        made = {call for turn in kept for call in turn.calls}
        given = {call for turn in kept for call in turn.results}
        lost = {call for call in answered if call not in given}
        whole = [turn for turn in kept if made.issuperset(turn.results) and lost.isdisjoint(turn.calls)]
        if len(whole) == len(kept):
            return kept
        # One that is left out may take another with it.
        kept = whole

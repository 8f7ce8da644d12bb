"""Server-sent events from bytes that may be cut anywhere.

Splits on bytes, so a cut inside a UTF-8 character does no harm; all of LF,
CRLF and CR end a line. What is not yet a whole event is kept, up to a bound.
"""

from collections.abc import Iterator

MAX_PENDING_BYTES = 4 * 1024 * 1024
"""Largest event: what the contract can carry in one message."""


class EventTooLarge(Exception):
    """One event is larger than any that makes sense."""


class SseSplitter:
    """Feed it bytes, get (event name, data) of every event that is whole."""

    def __init__(self, max_pending: int = MAX_PENDING_BYTES) -> None:
        self._max_pending = max_pending
        self._tail = bytearray()
        self._data: list[bytes] = []
        self._data_size = 0
        self._name = b""
        self._skip_lf = False
        self._begun = False

    def feed(self, chunk: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Events that this chunk completes. Raises EventTooLarge."""
        if not chunk:
            return
        if self._is_one_event(chunk):
            yield b"", chunk[6:-2]
            return
        if self._skip_lf and chunk[:1] == b"\n":
            chunk = chunk[1:]
        if not chunk:
            self._skip_lf = False
            return
        self._skip_lf = False
        end = max(chunk.rfind(b"\n"), chunk.rfind(b"\r")) + 1
        if not end:
            self._keep(chunk)
            return
        # A CR that ends the chunk ends its line; a LF after it belongs to it.
        self._skip_lf = chunk[-1:] == b"\r"
        lines = bytes(self._tail) + chunk[:end] if self._tail else chunk[:end]
        self._tail.clear()
        if end < len(chunk):
            self._keep(chunk[end:])
        yield from self._lines(lines)

    @property
    def is_between_events(self) -> bool:
        """Whether the next event begins with what comes next, or with a line that is not whole yet."""
        return not (self._data or self._name or self._skip_lf)

    def recalled(self, chunk: bytes) -> bytes:
        """The chunk after that beginning of a line, which waits here no longer; what nobody takes out must be fed."""
        if not self._tail:
            return chunk
        tail, self._tail = self._tail, bytearray()
        return bytes(tail) + chunk

    def close(self) -> Iterator[tuple[bytes, bytes]]:
        """The last event, when the stream ended without the blank line that closes it."""
        tail, self._tail = bytes(self._tail), bytearray()
        yield from self._lines(tail + b"\n\n")

    def _is_one_event(self, chunk: bytes) -> bool:
        """Whether nothing is pending and this is an event of one data line: what most reads of a stream are."""
        return (
            chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and self._begun
            and not (self._tail or self._data or self._name or self._skip_lf)
            and chunk.find(b"\n") == len(chunk) - 2
            and b"\r" not in chunk
            and len(chunk) <= self._max_pending
        )

    def _keep(self, rest: bytes) -> None:
        if len(self._tail) + len(rest) > self._max_pending:
            raise EventTooLarge
        self._tail += rest

    def _lines(self, lines: bytes) -> Iterator[tuple[bytes, bytes]]:
        if not self._begun:
            self._begun = True
            lines = lines.removeprefix(b"\xef\xbb\xbf")
        for line in lines.splitlines():
            if not line:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    name, self._name = self._name, b""
                    self._data.clear()
                    self._data_size = 0
                    yield name, data
                else:
                    self._name = b""
            elif line.startswith(b"data:"):
                value = line[6:] if line[5:6] == b" " else line[5:]
                # An empty line takes room as well.
                self._data_size += len(value) + 1
                if self._data_size > self._max_pending:
                    raise EventTooLarge
                self._data.append(value)
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
            # Comments (`: ping`), ids and retry hints say nothing that is needed here.

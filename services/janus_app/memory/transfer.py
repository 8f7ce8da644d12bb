"""Exports as files.

A file is the line `janus memory export 1` and then one ExportResponse after the
other, each with its length in bytes before it as a varint, as protobuf's own
delimited form has it; the last one is `completed`. A file is written beside its
place and moved there when it is whole.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from google.protobuf.message import DecodeError
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

from janus_api.memory.v1 import memory_service_pb2 as pb
from janus_api.memory.v1 import scope_pb2
from janus_app.memory.calls import Calls
from janus_app.refusals import Refused

MAGIC = b"janus memory export 1\n"
_MOST_BYTES = 64 * 1024 * 1024


def export(
    console: Console,
    calls: Calls,
    file: Path,
    space: str,
    subject: str,
    with_history: bool,
    with_vectors: bool,
    force: bool,
) -> None:
    """Raises Refused, and leaves nothing, when the export did not come to its end."""
    request = pb.ExportRequest(
        scope=scope_pb2.Scope(space=space, subject=subject),
        include_history=with_history,
        include_vectors=with_vectors,
    )
    completed = None
    with whole(file, force=force) as out, _progress(console) as progress:
        task = progress.add_task("exported", total=None, records=0)
        out.write(MAGIC)
        for answer in calls.stream("Export", request):
            data = answer.SerializeToString()
            out.write(_varint(len(data)) + data)
            progress.update(task, advance=len(data), records=answer.sequence)
            if answer.WhichOneof("record") == "completed":
                completed = answer.completed
        if completed is None:
            raise Refused("The export broke off; nothing was written.")
    console.print(f"{completed.records} records, SHA-256 {completed.sha256.hex()}", highlight=False)


def import_file(console: Console, calls: Calls, file: Path, space: str, request_id: str) -> None:
    """Raises Refused for a file that is no export or not whole, before anything is sent of it but its records."""
    try:
        size = file.stat().st_size
        source = file.open("rb")
    except OSError as error:
        raise Refused(f"{file}: {error.strerror}") from None
    with source, _progress(console) as progress:
        task = progress.add_task("imported", total=size, records=0)

        def requests() -> Iterator[pb.ImportRequest]:
            yield pb.ImportRequest(config=pb.ImportConfig(space=space, request_id=request_id))
            for number, record in enumerate(read(source, file), 1):
                progress.update(task, completed=source.tell(), records=number)
                yield as_import(record)

        _must_be_whole(source, file)
        source.seek(0)
        answer = calls.send("Import", requests())
    console.print(f"{answer.stored} stored, {answer.unchanged} were there already", highlight=False)


def read(source: BinaryIO, file: Path) -> Iterator[pb.ExportResponse]:
    """The records of an export. Raises Refused for what is none."""
    if source.read(len(MAGIC)) != MAGIC:
        raise Refused(f"{file} is not what `janus memory export` wrote.")
    while (size := _read_varint(source, file)) is not None:
        data = source.read(size) if size <= _MOST_BYTES else b""
        if len(data) < size:
            raise Refused(f"{file} is cut off.")
        try:
            yield pb.ExportResponse.FromString(data)
        except DecodeError:
            raise Refused(f"{file} is damaged.") from None


def as_import(record: pb.ExportResponse) -> pb.ImportRequest:
    """The same record on its way back."""
    kind = record.WhichOneof("record")
    if kind is None:
        raise Refused("The file has a record of a kind that this version does not know.")
    return pb.ImportRequest(**{kind: getattr(record, kind)})


def _must_be_whole(source: BinaryIO, file: Path) -> None:
    last = None
    for record in read(source, file):
        last = record.WhichOneof("record")
    if last != "completed":
        raise Refused(f"{file} is not whole: it does not end in a checksum.")


@contextmanager
def whole(file: Path, *, force: bool) -> Iterator[BinaryIO]:
    """A file that is there when the block ends well, and otherwise as before.

    Raises Refused, before the block begins, when it cannot be written, or is
    there and is not to be replaced.
    """
    if str(file) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if not file.parent.is_dir():
        raise Refused(f"The folder {file.parent} does not exist.")
    if file.is_dir():
        raise Refused(f"{file} is a folder.")
    if file.exists() and not force:
        raise Refused(f"{file} is there already; --force replaces it.")
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        try:
            out = partial.open("xb")
        except OSError as error:
            raise Refused(f"{file}: {error.strerror}") from None
        with out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[records]} records"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _read_varint(source: BinaryIO, file: Path) -> int | None:
    number = shift = 0
    while byte := source.read(1):
        number |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return number
        shift += 7
        if shift > 35:
            raise Refused(f"{file} is damaged.")
    if shift:
        raise Refused(f"{file} is cut off.")
    return None

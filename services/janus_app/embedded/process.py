"""Processes: start one with a log file, wait for it, find and stop leftovers."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_app.embedded import child

log = logging.getLogger("janus.embedded")

_POLL_S = 0.01
_SHIM = str(Path(child.__file__).resolve())


@dataclass(frozen=True)
class Account:
    """As whom a program runs: as ourselves, or with root given up.

    ``options`` are those of child.py; empty means as ourselves.
    """

    options: tuple[str, ...] = ()

    @classmethod
    def namespace(cls, uid: int) -> "Account":
        return cls(("--namespace", str(uid)))

    @classmethod
    def switched(cls, uid: int, gid: int) -> "Account":
        return cls(("--switch", f"{uid}:{gid}"))


@dataclass(frozen=True)
class Command:
    """A program to run in ``folder``, which is also how leftovers are recognised.

    ``death_signal`` is sent by the kernel when we die without stopping it; 0 is none.
    """

    argv: tuple[str, ...]
    folder: Path
    log: Path
    death_signal: int
    account: Account = Account()


async def start(command: Command, give: bytes = b"") -> asyncio.subprocess.Process:
    """Start it in a session of its own, so that Ctrl-C reaches only us.

    ``give`` is what it can read from its standard input (a few lines).
    """
    # The environment is not passed on: the servers need none of our keys.
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(command.folder),
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "NO_COLOR": "1",
        "ANONYMIZED_TELEMETRY": "False",
    }
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with contextlib.ExitStack() as ours:

        def until_started(descriptor: int) -> int:
            ours.callback(os.close, descriptor)
            return descriptor

        output = until_started(os.open(command.log, flags, 0o600))
        source = asyncio.subprocess.DEVNULL
        if give:
            source, writing = map(until_started, os.pipe())
            os.write(writing, give)
        return await asyncio.create_subprocess_exec(
            *shimmed(command),
            cwd=command.folder,
            env=environment,
            stdin=source,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def shimmed(command: Command) -> tuple[str, ...]:
    """The command line that runs ``command`` through child.py."""
    options = (str(os.getpid()), str(int(command.death_signal)), *command.account.options)
    return (sys.executable, "-I", "-S", _SHIM, *options, "--", *command.argv)


async def stop(process: asyncio.subprocess.Process, signals: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal and wait its seconds for the end; then SIGKILL."""
    for number, patience in signals:
        if process.returncode is not None:
            return
        _signal(process, number)
        try:
            async with asyncio.timeout(patience):
                await process.wait()
        except TimeoutError:
            log.warning("process %d is still there %.0f s after %s", process.pid, patience, number.name)
    if process.returncode is None:
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    # It may have ended by itself; wait() will say so.
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)


@dataclass(frozen=True)
class Found:
    """A running process that works in one of our folders."""

    pid: int
    parent: int
    started: int


def running_in(folder: Path, is_ours: Callable[[str, Sequence[str]], bool]) -> list[Found]:
    """Processes whose working directory is ``folder`` and that ``is_ours`` accepts.

    ``is_ours`` gets the program's file name and its command line. Servers keep
    their data folder as working directory, and the folder is compared by
    inode, so neither a reused process id nor a renamed folder can mislead.
    """
    try:
        place = folder.stat()
    except FileNotFoundError:
        return []
    found = []
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            there = os.stat(f"/proc/{entry.name}/cwd")
            if (there.st_dev, there.st_ino) != (place.st_dev, place.st_ino):
                continue
            program = os.path.basename(os.readlink(f"/proc/{entry.name}/exe")).removesuffix(" (deleted)")
            words = Path(f"/proc/{entry.name}/cmdline").read_bytes().decode(errors="replace").split("\0")
            fields = _stat(int(entry.name))
        except OSError:
            continue  # gone meanwhile, or another user's
        if is_ours(program, words):
            found.append(Found(int(entry.name), parent=int(fields[1]), started=int(fields[19])))
    return found


def stop_leftovers(find: Callable[[], list[Found]], signals: Sequence[tuple[signal.Signals, float]], what: str) -> int:
    """End what ``find`` finds: each signal to the topmost ones, then SIGKILL to all.

    Blocks until none is left; returns how many there were. Raises TimeoutError
    when some survive even SIGKILL.
    """
    first = found = find()
    for number, patience in signals:
        if not found:
            break
        ids = {process.pid for process in found}
        top = [process for process in found if process.parent not in ids]
        log.warning("stopping %s left by an earlier run (process %s)", what, _ids(top))
        for process in top:
            _signal_found(process, number)
        found = _wait_gone(find, patience)
    if found:
        for process in found:
            _signal_found(process, signal.SIGKILL)
        found = _wait_gone(find, 5.0)
    if found:
        raise TimeoutError(f"{what} (process {_ids(found)}) does not end")
    return len(first)


def start_time(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it has ended.

    With the id it names a process for good: ids are used again.
    """
    try:
        fields = _stat(pid)
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])  # ended, not yet asked for by its parent


def _wait_gone(find: Callable[[], list[Found]], patience: float) -> list[Found]:
    deadline = time.monotonic() + patience
    while (found := find()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    return found


def _signal_found(process: Found, number: signal.Signals) -> None:
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return
    try:
        # The descriptor holds the process: what is checked now is what gets the signal.
        if start_time(process.pid) == process.started:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5) counts it as the third)."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return text.rpartition(")")[2].split()  # the name before it may hold anything


def _ids(processes: Sequence[Found]) -> str:
    return ", ".join(str(process.pid) for process in processes)


def ended(code: int, names: Mapping[int, str] | None = None) -> str:
    """How a process ended, in words."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return (names or {}).get(code, f"ended with code {code}")

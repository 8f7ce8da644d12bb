"""What a child process does between fork and the real program.

Run as a script (``python -I -S child.py OPTIONS -- PROGRAM ARGUMENTS``), never
imported by the mesh, and without site-packages, so that it costs about 15 ms.
It makes the child die with its parent, and it gives up root for Postgres,
which refuses to run as root:

``--namespace UID``
    a user namespace in which our own user has that number. Files keep their
    owner, no other account is involved, and no folder changes its mode.
``--switch UID:GID``
    really becomes that user; CAP_DAC_OVERRIDE is kept where possible, so that
    the parents of the data folder (often closed, as /root) need not be opened.

Exit codes of its own: 77 when the namespace is refused, 78 when the user
cannot be switched, 79 when the parent has died already.
"""

import ctypes
import os
import signal
import sys

REFUSED, NOT_SWITCHED, ORPHANED = 77, 78, 79

_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 8, 47, 2
_CAPABILITY_VERSION_3, _CAP_DAC_OVERRIDE = 0x20080522, 1


def main(arguments: list[str]) -> None:
    separator = arguments.index("--")
    options, program = arguments[:separator], arguments[separator + 1 :]
    libc = ctypes.CDLL(None, use_errno=True)
    parent, death_signal = int(options[0]), int(options[1])
    account = options[2] if len(options) > 2 else ""
    if account == "--namespace":
        _enter_namespace(libc, int(options[3]))
    elif account == "--switch":
        uid, _, gid = options[3].partition(":")
        _switch(libc, int(uid), int(gid))
    # Only now: changing the user clears it.
    libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(ORPHANED)  # it died before the line above could have told us
    if program:
        os.umask(0o077)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that would be inherited
        os.execv(program[0], program)  # noqa: S606 - no shell, our own arguments


def _enter_namespace(libc: ctypes.CDLL, inner: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER) != 0:
        _fail(REFUSED, "unshare(CLONE_NEWUSER): " + os.strerror(ctypes.get_errno()))
    try:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{inner} {uid} 1")
        _write("/proc/self/gid_map", f"{inner} {gid} 1")
    except OSError as error:
        _fail(REFUSED, f"mapping the user in its namespace: {error}")


def _switch(libc: ctypes.CDLL, uid: int, gid: int) -> None:
    libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    try:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        _fail(NOT_SWITCHED, f"becoming user {uid}: {error}")
    # Best effort: a container may have dropped the capability, and needs it
    # only when a parent of the data folder is closed to the new user.
    bit = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    effective_permitted_inheritable = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)
    if libc.capset(header, effective_permitted_inheritable) == 0:
        libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _fail(code: int, message: str) -> None:
    os.write(2, (message + "\n").encode())
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])

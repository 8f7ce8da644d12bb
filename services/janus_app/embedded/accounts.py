"""As whom Postgres runs, which refuses to be root and insists on owning its folder."""

import asyncio
import os
import pwd
from pathlib import Path

from janus_app.embedded import process
from janus_app.embedded.binaries import postgres_programs
from janus_app.embedded.child import REFUSED
from janus_app.embedded.errors import EmbeddedError
from janus_app.embedded.process import Account, Command, log

_NOBODY = 65_534


async def account_for(cluster: Path, command: Command) -> Account:
    """The account for the server of an existing ``cluster`` folder.

    ``command`` is any command that may be run as a trial. As root, a cluster
    of root's is served through a user namespace, and that of another user as
    that user. Where namespaces are refused (a container's default), the
    folder is handed to an unprivileged account.
    """
    owner = await asyncio.to_thread(cluster.stat)
    if os.geteuid() != 0:
        if owner.st_uid != os.geteuid():
            raise EmbeddedError(
                f"{cluster} belongs to user {_name(owner.st_uid)}, and this is user {_name(os.geteuid())}",
                "Run Janus as the user who made the data folder, or choose another one with --data.",
            )
        return Account()
    if owner.st_uid != 0:
        return Account.switched(owner.st_uid, owner.st_gid)
    namespace = Account.namespace(_known_user())
    if await _works(command, namespace):
        return namespace
    await asyncio.to_thread(_require_open, postgres_programs().server)
    uid = _known_user()
    log.info("user namespaces are refused here: Postgres runs as user %s", _name(uid))
    await asyncio.to_thread(_hand_over, cluster, uid, uid)
    return Account.switched(uid, uid)


async def account_for_initdb(account: Account, command: Command) -> Account:
    """The same, for initdb, which also wants its user to have a name.

    Containers often run under a number without an entry in /etc/passwd.
    """
    if account.options or _has_name(os.geteuid()):
        return account
    namespace = Account.namespace(_known_user())
    if await _works(command, namespace):
        return namespace
    raise EmbeddedError(
        f"user {os.geteuid()} has no name in /etc/passwd, and Postgres cannot be initialised without one",
        "Add an entry for it, run Janus as another user, or set JANUS_POSTGRES_URL to a server of your own.",
    )


async def _works(command: Command, account: Account) -> bool:
    nothing = Command((), command.folder, command.log, command.death_signal, account)
    trial = await process.start(nothing)
    code = await trial.wait()
    if code not in (0, REFUSED):
        log.warning("trying a user namespace: the trial %s", process.ended(code))
    return code == 0


def _known_user() -> int:
    """An unprivileged user with a name: "nobody" where there is one."""
    if _has_name(_NOBODY):
        return _NOBODY
    return next((entry.pw_uid for entry in pwd.getpwall() if entry.pw_uid != 0), _NOBODY)


def _has_name(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def closed_above(program: Path) -> Path | None:
    """The first folder above it that other users may not enter; Postgres must find itself by its path."""
    return next((folder for folder in program.parents if not folder.stat().st_mode & 0o001), None)


def _require_open(program: Path) -> None:
    closed = closed_above(program)
    if closed is not None:
        raise EmbeddedError(
            f"user namespaces are refused here, and {closed} is closed to the unprivileged user that Postgres runs as",
            "Install Janus where every user can read it, run it as an ordinary user,"
            " or set JANUS_POSTGRES_URL to a server of your own.",
        )


def _hand_over(folder: Path, uid: int, gid: int) -> None:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(os.path.join(place, name), uid, gid, follow_symlinks=False)
    os.chown(folder, uid, gid)

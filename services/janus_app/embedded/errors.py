"""What can go wrong with the embedded stack, each with a way out."""


class EmbeddedError(Exception):
    """A part cannot be started or kept; ``fix`` says what the user can do.

    ``str()`` is the problem and the fix on lines of their own, fit to be
    printed as it is. It holds no password.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(f"{problem}\n{fix}")
        self.problem = problem
        self.fix = fix


class DataFolderInUse(EmbeddedError):
    """Another process holds the lock of the data folder.

    ``pid`` and ``address`` (gRPC, ``host:port``) are those of the holder, None
    when it has not written them yet.
    """

    def __init__(self, folder: str, pid: int | None, address: str | None) -> None:
        holder = "another Janus" if pid is None else f"the Janus with process id {pid}"
        serving = f", serving at {address}" if address else ""
        super().__init__(
            f"the data folder {folder} is in use by {holder}{serving}",
            "Talk to that one, stop it first, or choose another folder with --data.",
        )
        self.pid = pid
        self.address = address

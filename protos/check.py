"""Check the contract: style, compatibility, and that the generated code is up to date.

    python protos/check.py [lint|format|breaking|drift …]   default: all four

lint      buf's STANDARD rules, and a comment on every element
format    buf's formatting
breaking  nothing that clients of `protos/baseline.binpb` rely on was changed
drift     `gen/janus_api` is what `protos/generate.py` writes

Needs no network. Prints what is wrong and how to mend it; exits with 1 then.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from generate import BASELINE, PROTOS, ROOT, beside_interpreter, generate, image, tree

CONFIG = PROTOS / "buf.yaml"


def lint(scratch: Path) -> str:
    return _buf("lint", str(_image(scratch)), "--path", "janus", "--config", str(CONFIG))


def formatting(_scratch: Path) -> str:
    return _buf("format", "--diff", "--exit-code", str(PROTOS))


def breaking(scratch: Path) -> str:
    # `--path` keeps google's own files, which ours import, out of the comparison.
    against = ["--against", str(BASELINE), "--against-config", str(CONFIG)]
    return _buf("breaking", str(_image(scratch)), *against, "--path", "janus", "--config", str(CONFIG))


def drift(scratch: Path) -> str:
    generate(scratch)
    wanted, present = tree(scratch / "janus_api"), tree(ROOT / "gen" / "janus_api")
    different = sorted(name for name in wanted | present if wanted.get(name) != present.get(name))
    return "\n".join(f"gen/janus_api/{name}" for name in different)


CHECKS: dict[str, tuple[Callable[[Path], str], str]] = {
    "lint": (lint, "follow the rule that is named"),
    "format": (formatting, "run `make format`"),
    "breaking": (breaking, "add a field or a package instead; a release may accept it: `make baseline`"),
    "drift": (drift, "run `make gen` and commit gen/; never edit it"),
}


def _image(scratch: Path) -> Path:
    file = scratch / "image.binpb"
    if not file.exists():
        image(file, comments=True)
    return file


def _buf(*arguments: str) -> str:
    """What buf objects to; empty when it does not."""
    command = [str(beside_interpreter("buf")), *arguments]
    # Its cache belongs with the tools, not into the user's home.
    environment = {**os.environ, "BUF_CACHE_DIR": str(Path(sys.prefix) / ".buf-cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - our own words
    if not done.returncode:
        return ""
    return (done.stdout + done.stderr).strip() or f"buf exits with {done.returncode}"


def main(names: list[str]) -> int:
    if unknown := set(names) - CHECKS.keys():
        sys.stderr.write(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}\n")
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in names or CHECKS:
            check, remedy = CHECKS[name]
            if objections := check(Path(scratch)):
                failed = 1
                sys.stderr.write(f"protos: {name} fails\n{objections}\n  -> {remedy}\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

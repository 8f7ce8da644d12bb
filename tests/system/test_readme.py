"""The README's clients, as they stand there, against a running mesh."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.system.driver import Server

from janus_app.embedded import read_state

README = Path(__file__).parents[2] / "README.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", range(2), ids=["grpc", "openai"])
def test_a_python_client_of_the_readme_gets_an_answer(served: Server, example: int) -> None:
    state = read_state(served.data)
    assert state is not None
    code = examples()[example]
    assert ("127.0.0.1:50051" in code) != ("127.0.0.1:8080" in code)
    code = code.replace("127.0.0.1:50051", state.published["grpc"]).replace("127.0.0.1:8080", state.published["http"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "rehearsal" in done.stdout

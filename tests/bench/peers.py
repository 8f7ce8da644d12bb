"""Other gateways in front of the same provider: `make bench PEERS=1`.

They are installed when they are asked for, into an environment of their own beside the project's:
nothing of Janus depends on them.
"""

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import ROOT, Measured, free_port, started, wait_until

ENVIRONMENT = ROOT / ".venv-peers"
LITELLM = "litellm[proxy]"
KEY = "sk-bench"
"""What its callers must show; it does not start without one."""


@contextmanager
def litellm(folder: Path, upstream: str) -> Iterator[Measured]:
    """LiteLLM's proxy with one worker, every model passed on to the provider at ``upstream``."""
    program = _installed(LITELLM, "litellm")
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: '*'\n"
        "    litellm_params:\n"
        "      model: openai/*\n"
        f"      api_base: http://{upstream}/v1\n"
        "      api_key: sk-bench\n"
        "litellm_settings: {telemetry: false, num_retries: 0}\n"
    )
    port = free_port()
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    log = folder / "litellm.log"
    with started(command, log, LITELLM_LOG="ERROR", LITELLM_MODE="PRODUCTION", LITELLM_MASTER_KEY=KEY) as process:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/health/liveliness"), process, log)
        yield Measured(f"127.0.0.1:{port}", process.pid)


def _installed(requirement: str, program: str) -> Path:
    path = ENVIRONMENT / "bin" / program
    if not path.exists():
        print(f"installing {requirement} into {ENVIRONMENT.name} …", flush=True)
        uv = str(Path(sys.executable).parent / "uv")
        python = str(ENVIRONMENT / "bin" / "python")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(ENVIRONMENT)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, requirement], check=True)
    version = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"\n{version.splitlines()[-1].strip()}, one worker", flush=True)
    return path


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (OSError, urllib.error.URLError):
        return False

"""The deployment files, parsed."""

import os
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def deploy() -> Path:
    return ROOT / "deploy"


@pytest.fixture(scope="session")
def compose() -> dict[str, Any]:
    """compose.yaml as Compose reads it: variables replaced by their defaults."""
    text = (ROOT / "deploy/compose.yaml").read_text()
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
    document = yaml.safe_load(text)
    assert isinstance(document, dict)
    return document


@pytest.fixture(scope="session")
def services(compose: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """All containers by name."""
    return dict(compose["services"])


@pytest.fixture(scope="session")
def lock() -> dict[str, str]:
    """Locked versions by package."""
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    return {package["name"]: package.get("version", "") for package in packages}


@pytest.fixture(scope="session")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make-secrets.sh makes, with a provider's key in the environment."""
    folder = tmp_path_factory.mktemp("made") / "secrets"
    environment = {"PATH": os.environ["PATH"], "OPENAI_API_KEY": "sk-test"}
    script = ROOT / "deploy/make-secrets.sh"
    subprocess.run([script, folder], check=True, env=environment, stdout=subprocess.DEVNULL, timeout=30)
    return folder

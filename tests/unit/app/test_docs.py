"""The documentation's examples are what the code takes."""

from __future__ import annotations

import re
from pathlib import Path

from janus_app.settings import SECTIONS
from janus_inference.profiles import PROFILES
from janus_inference.settings import (
    AliasSettings,
    InferenceSettings,
    PriceSettings,
    ProviderSettings,
    RoutingSettings,
)
from janus_kit.settings import load

ROOT = Path(__file__).parents[3]


def test_the_configuration_guides_example_loads(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "configuration.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert example
    file = tmp_path / "janus.yaml"
    file.write_text(example[1])
    loaded = load(SECTIONS, file=file)
    assert loaded["inference"].default_target() == "default"
    assert loaded.origin("server.drain_s") == "file"


def test_every_example_of_the_configuration_guide_loads(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "guides" / "configuration.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(examples) > 1
    for example in examples:
        file = tmp_path / "janus.yaml"
        file.write_text(example)
        load(SECTIONS, file=file)


def test_every_profile_of_the_configuration_guide_is_one() -> None:
    guide = (ROOT / "docs" / "guides" / "configuration.md").read_text()
    (row,) = re.findall(r"^\| `profile` \|(.*)$", guide, re.MULTILINE)
    assert set(re.findall(r"`([^`]+)`", row)) == set(PROFILES) - {"openai"}


def test_every_key_of_inference_is_in_the_configuration_guide() -> None:
    guide = (ROOT / "docs" / "guides" / "configuration.md").read_text()
    named = set(re.findall(r"[a-z_]+", guide))
    for model in (InferenceSettings, ProviderSettings, RoutingSettings, PriceSettings, AliasSettings):
        assert set(model.model_fields) - named == set()


def test_every_file_that_the_readme_links_to_is_there() -> None:
    readme = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_make_target_that_the_readme_names_is_there() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert named
    assert named <= targets

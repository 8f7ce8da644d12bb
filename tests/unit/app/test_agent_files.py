"""What is said of a file that describes no agent, in the words that the file is written in."""

from __future__ import annotations

from pathlib import Path

import pytest

from janus_app.refusals import Refused
from janus_app.runs.agents import read


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nmodell: b\n", "agent has no field 'modell'. It has name, model, "),
        ("name: a\nmemory:\n  spaces: b\n", "agent.memory has no field 'spaces'. It has space, recall_limit, "),
        (
            "name: a\ntools:\n  - name: b\n  - nam: c\n",
            "agent.tools[1] has no field 'nam'. It has name, when_no_worker, ",
        ),
        ("name: a\n5: b\n", "agent has no field '5'"),
    ],
)
def test_a_key_that_is_not_known_is_named_with_those_that_are(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(Refused) as refused:
        read(str(file))
    assert told in str(refused.value)
    assert "Available" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nmodel: b\nname: c\n", "line 3: 'name' is there twice"),
        ("name: a\ntools:\n  - name: b\n    timeout: 5s\n    timeout: 50s\n", "line 5: 'timeout' is there twice"),
        ('{"name": "a",\n"name": "b"}', "line 2: 'name' is there twice"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    with pytest.raises(Refused) as refused:
        read(str(file))
    assert str(refused.value) == f"{file} {told}."


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read: No such file or directory"), (b"name: \xff", "cannot be read: it is not UTF-8")],
)
def test_a_file_that_cannot_be_read_is_named_once(tmp_path: Path, content: bytes | None, told: str) -> None:
    file = tmp_path / "agent.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(Refused) as refused:
        read(str(file))
    assert str(refused.value) == f"{file} {told}"


def test_names_are_taken_as_the_contract_and_as_json_write_them(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        "name: a\nmaxOutputTokens: 5\nbudgets:\n  max_wall_time: 5s\nsampling:\n  topP: 0.5\n"
        "tools:\n  - name: b\n    timeout: 5s\n    needsApproval: true\n"
    )
    agent = read(str(file))
    assert agent.max_output_tokens == 5
    assert agent.budgets.max_wall_time.seconds == 5
    assert agent.tools[0].needs_approval

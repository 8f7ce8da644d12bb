"""Settings that change while the process runs: when they are read again, and what becomes of them."""

import asyncio
import json
import os
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY
from pydantic import Field, SecretStr

from janus_kit.reload import Outcome, Reloading, Sources
from janus_kit.settings import Settings, SettingsError
from janus_kit.telemetry import logging

SECRET = "sk-never-to-be-seen"


class Provider(Settings):
    url: str = ""
    api_key: SecretStr | None = None


class InferenceSettings(Settings):
    default_model: str = "scripted"
    timeout_s: float = Field(default=10, gt=0)
    openai_api_key: SecretStr | None = None
    providers: dict[str, Provider] = Field(default_factory=dict)


class StoreSettings(Settings):
    url: SecretStr = SecretStr("postgresql://nobody")


SECTIONS = {"inference": InferenceSettings, "postgres": StoreSettings}


class Process:
    """A process with a settings file and a secrets directory, whose inference section has an owner."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "janus.yaml"
        self.secrets = folder / "secrets"
        self.secrets.mkdir()
        self.write({"inference": {"default_model": "first"}})
        self.given: asyncio.Queue[InferenceSettings] = asyncio.Queue()
        self.refusal: Exception | None = None
        self.environ: dict[str, str] = {}

    def write(self, content: Any) -> None:
        self.file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))

    def start(self, *, fixed: tuple[str, ...] = (), **options: Any) -> Reloading:
        sources = Sources(SECTIONS, file=self.file, environ=self.environ, secrets_dir=self.secrets)
        reloading = Reloading(sources, **options)
        reloading.section("inference", InferenceSettings).on_change(self.apply, fixed=fixed)
        return reloading

    async def apply(self, settings: InferenceSettings) -> None:
        if self.refusal is not None:
            raise self.refusal
        await self.given.put(settings)


@pytest.fixture
def process(tmp_path: Path) -> Process:
    return Process(tmp_path)


@pytest.fixture
def lines():
    output = StringIO()
    logging.configure(level="info", form="json", stream=output)
    yield lambda: [json.loads(line) for line in output.getvalue().splitlines()]
    logging.configure(level="warning")


def reloads(outcome: str) -> float:
    return REGISTRY.get_sample_value("janus_config_reloads_total", {"outcome": outcome}) or 0.0


def last_successful() -> float | None:
    return REGISTRY.get_sample_value("janus_config_last_reload_successful")


async def test_new_settings_reach_the_owner_of_their_section(process: Process, lines) -> None:
    reloading = process.start()
    before = reloads("applied")
    process.write({"inference": {"default_model": "second", "openai_api_key": SECRET}})
    assert await reloading.reload("signal") is Outcome.APPLIED
    assert process.given.get_nowait().default_model == "second"
    (line,) = lines()
    assert line["event"] == "configuration_applied"
    assert line["changed"] == ["inference.default_model", "inference.openai_api_key"]
    assert SECRET not in json.dumps(lines())
    assert (reloads("applied"), last_successful()) == (before + 1, 1)


async def test_the_environment_and_arguments_of_the_start_still_win(process: Process) -> None:
    process.environ = {"JANUS_INFERENCE__TIMEOUT_S": "7"}
    reloading = process.start()
    process.write({"inference": {"default_model": "second", "timeout_s": 3}})
    await reloading.reload()
    assert process.given.get_nowait().timeout_s == 7


async def test_settings_that_are_the_same_reach_nobody(process: Process, lines) -> None:
    reloading = process.start()
    before = reloads("unchanged")
    process.write("# a remark\ninference: {default_model: first}\n")
    assert await reloading.reload() is Outcome.UNCHANGED
    assert process.given.empty()
    assert [line["event"] for line in lines()] == ["configuration_unchanged"]
    assert reloads("unchanged") == before + 1


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"inference": {"timeout_s": -1, "default_model": "second"}}, "inference.timeout_s: Input should be greater"),
        ({"inference": {"defualt_model": "x"}}, "inference.defualt_model: unknown key, did you mean 'default_model'?"),
        (f"inference: {{openai_api_key: '{SECRET}', providers: [{SECRET}", "not valid YAML"),
        ({"inference": {"openai_api_key": [SECRET]}}, "inference.openai_api_key: Input should be a valid string"),
        ({"inference": {"default_model": "second"}, "postgres": {"ulr": SECRET}}, "postgres.ulr: unknown key"),
        (SECRET, "must hold a mapping of sections"),
        ("", "is empty"),
    ],
    ids=["rule", "key", "yaml", "secret", "another section", "no mapping", "nothing"],
)
async def test_settings_that_are_wrong_change_nothing_and_are_told(
    process: Process, lines, content: Any, problem: str
) -> None:
    reloading = process.start()
    before = reloads("refused")
    process.write(content)
    assert await reloading.reload() is Outcome.REFUSED
    assert process.given.empty()
    (line,) = lines()
    assert (line["event"], line["level"]) == ("configuration_refused", "error")
    assert any(problem in told for told in line["problems"])
    assert SECRET not in json.dumps(line)
    assert (reloads("refused"), last_successful()) == (before + 1, 0)


async def test_every_problem_is_told(process: Process, lines) -> None:
    reloading = process.start()
    process.write({"inference": {"timeout_s": 0}, "nonsense": {"a": 1}})
    await reloading.reload()
    assert len(lines()[0]["problems"]) == 2


async def test_after_a_mistake_is_taken_back_all_is_well(process: Process) -> None:
    reloading = process.start()
    good = process.file.read_text()
    process.write("inference: 1")
    await reloading.reload()
    assert last_successful() == 0
    process.write(good)
    assert await reloading.reload() is Outcome.UNCHANGED
    assert last_successful() == 1


async def test_an_owner_can_refuse_what_is_valid_in_itself(process: Process, lines) -> None:
    reloading = process.start()
    process.refusal = SettingsError(["inference.providers.x.profile: no such profile"])
    process.write({"inference": {"default_model": "second"}})
    assert await reloading.reload() is Outcome.REFUSED
    assert lines()[-1]["problems"] == ["inference.providers.x.profile: no such profile"]
    process.refusal = None
    assert await reloading.reload() is Outcome.APPLIED
    assert process.given.get_nowait().default_model == "second"


async def test_a_bug_in_an_owner_is_a_refusal_and_leaves_the_process_alone(process: Process, lines) -> None:
    reloading = process.start()
    process.refusal = ZeroDivisionError()
    process.write({"inference": {"default_model": "second"}})
    assert await reloading.reload() is Outcome.REFUSED
    assert lines()[-1]["problems"] == ["inference: could not be applied (ZeroDivisionError)"]


async def test_what_needs_a_restart_is_named_and_the_rest_is_applied(process: Process, lines) -> None:
    reloading = process.start(fixed=("timeout_s",))
    process.write(
        {"inference": {"default_model": "second", "timeout_s": 3}, "postgres": {"url": f"postgresql://:{SECRET}@x"}}
    )
    assert await reloading.reload() is Outcome.APPLIED
    given = process.given.get_nowait()
    assert (given.default_model, given.timeout_s) == ("second", 10)
    warning = lines()[-1]
    assert (warning["level"], warning["detail"]) == ("warning", "takes effect after a restart")
    assert sorted(warning["changed"]) == ["inference.timeout_s", "postgres.url"]
    assert SECRET not in json.dumps(lines())


async def test_only_what_needs_a_restart_is_no_change_for_the_owner(process: Process) -> None:
    reloading = process.start(fixed=("timeout_s",))
    process.write({"inference": {"default_model": "first", "timeout_s": 3}})
    assert await reloading.reload() is Outcome.UNCHANGED
    assert process.given.empty()


def test_settings_that_are_wrong_at_the_start_are_an_error(process: Process) -> None:
    process.write("inference: 1")
    with pytest.raises(SettingsError):
        process.start()


def test_a_section_has_one_owner(process: Process) -> None:
    reloading = process.start()
    with pytest.raises(ValueError, match="inference has an owner"):
        reloading.section("inference", InferenceSettings).on_change(process.apply)


def test_a_change_counts_once_it_stood_still_for_a_look(process: Process) -> None:
    reloading = process.start()
    assert not reloading.settled()
    process.write("inference: {default")
    assert not reloading.settled()
    process.write("inference: {default_model: second}")
    assert not reloading.settled(), "it was still being written at the last look"
    assert reloading.settled()
    assert not reloading.settled(), "a change counts once"


def test_a_change_that_was_taken_back_between_two_looks_does_not_count(process: Process, tmp_path: Path) -> None:
    reloading = process.start()
    kept = tmp_path / "kept"
    os.rename(process.file, kept)
    assert not reloading.settled()
    os.rename(kept, process.file)
    assert not reloading.settled()
    assert not reloading.settled()


def test_a_file_that_is_replaced_as_editors_do_counts(process: Process, tmp_path: Path) -> None:
    reloading = process.start()
    state = process.file.stat()
    new = tmp_path / ".janus.yaml.swp"
    new.write_text(process.file.read_text())
    os.utime(new, ns=(state.st_atime_ns, state.st_mtime_ns))
    os.replace(new, process.file)
    assert not reloading.settled()
    assert reloading.settled()


async def test_the_link_that_kubernetes_swaps_counts(process: Process, tmp_path: Path) -> None:
    volume = tmp_path / "volume"

    def publish(version: str) -> None:
        (volume / version).mkdir(parents=True)
        (volume / version / "janus.yaml").write_text(f"inference: {{default_model: {version}}}")
        os.symlink(version, volume / "..data_tmp")
        os.replace(volume / "..data_tmp", volume / "..data")

    publish("v1")
    os.symlink(os.path.join("..data", "janus.yaml"), volume / "janus.yaml")
    process.file = volume / "janus.yaml"
    reloading = process.start()
    publish("v2")
    shutil.rmtree(volume / "v1")
    assert not reloading.settled()
    assert reloading.settled()
    await reloading.reload()
    assert process.given.get_nowait().default_model == "v2"


async def test_a_secret_that_is_rotated_counts_and_other_programs_files_do_not(process: Process) -> None:
    key = process.secrets / "janus_inference__openai_api_key"
    key.write_text("old")
    (process.secrets / "other").write_text("1")
    reloading = process.start()
    (process.secrets / "other").write_text("22")
    assert not reloading.settled()
    assert not reloading.settled()
    key.write_text(SECRET)
    assert not reloading.settled()
    assert reloading.settled()
    await reloading.reload()
    given = process.given.get_nowait().openai_api_key
    assert given is not None
    assert given.get_secret_value() == SECRET


async def test_a_file_that_is_gone_is_told_once_and_taken_up_again(process: Process, lines) -> None:
    reloading = process.start()
    process.file.unlink()
    assert [reloading.settled() for _ in range(3)] == [False, True, False]
    assert await reloading.reload() is Outcome.REFUSED
    assert lines()[-1]["problems"] == [f"{process.file}: no such file"]
    process.write({"inference": {"default_model": "second"}})
    assert [reloading.settled() for _ in range(3)] == [False, True, False]


async def test_a_running_process_follows_its_file(process: Process) -> None:
    reloading = process.start(poll_s=0.01)
    async with reloading.watching(), asyncio.timeout(30):
        process.write({"inference": {"default_model": "second"}})
        assert (await process.given.get()).default_model == "second"
        process.write({"inference": {"default_model": "third"}})
        assert (await process.given.get()).default_model == "third"


async def test_asking_reloads_at_once(process: Process) -> None:
    reloading = process.start(poll_s=3600)
    async with reloading.watching(), asyncio.timeout(30):
        process.write({"inference": {"default_model": "second"}})
        reloading.request()
        assert (await process.given.get()).default_model == "second"


async def test_what_was_asked_for_before_watching_began_is_done_then(process: Process) -> None:
    reloading = process.start(poll_s=3600)
    process.write({"inference": {"default_model": "second"}})
    reloading.request()
    async with reloading.watching(), asyncio.timeout(30):
        assert (await process.given.get()).default_model == "second"


async def test_without_any_file_asking_changes_nothing(lines) -> None:
    reloading = Reloading(Sources(SECTIONS))
    assert not reloading.settled()
    assert await reloading.reload() is Outcome.UNCHANGED


async def test_a_file_that_cannot_be_read_is_told(process: Process, lines) -> None:
    reloading = process.start()
    process.file.unlink()
    # A file that is there, and whose reading is an error for everybody, root included.
    os.symlink("/proc/self/mem", process.file)
    assert await reloading.reload() is Outcome.REFUSED
    assert lines()[-1]["problems"] == [f"{process.file}: cannot be read"]

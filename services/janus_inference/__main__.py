"""Inference as a process of its own: ``python -m janus_inference``."""

from contextlib import AbstractAsyncContextManager

from janus_inference.app import mount
from janus_inference.settings import InferenceSettings
from janus_kit.configuration import Loaded
from janus_kit.mount import Mount
from janus_kit.standalone import main


def _build(loaded: Loaded) -> AbstractAsyncContextManager[Mount]:
    return mount(loaded.section("inference", InferenceSettings))


if __name__ == "__main__":
    main("inference", InferenceSettings, _build)

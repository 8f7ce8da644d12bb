"""Which build this is."""

import os
from functools import cache
from importlib import metadata

DISTRIBUTION = "janus-mesh"


@cache
def version() -> str:
    """The distribution's version; `0+unknown` when run from a bare source tree."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "0+unknown"


@cache
def revision() -> str:
    """The source revision that the image was built from; `unknown` elsewhere."""
    return os.environ.get("JANUS_REVISION", "unknown")

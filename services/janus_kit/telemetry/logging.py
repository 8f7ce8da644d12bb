"""Structured logs: one JSON object a line on stderr, with the ids of the work at hand.

``request_id``, ``run_id``, ``tenant`` and ``trace_id`` are context variables:
bound once, they are on every line that the task and its children log. Lines of
the standard library's loggers take the same form. Content of messages and
memories is never logged.
"""

import logging
import sys
from contextlib import suppress
from typing import Any, Literal, TextIO, cast

import structlog
from pydantic import SecretBytes, SecretStr
from structlog.typing import EventDict, FilteringBoundLogger, Processor

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

# Libraries that report at info what is of interest only when they are debugged.
_QUIET = ("asyncio", "chromadb", "grpc", "httpcore", "httpx", "httpx2", "openai", "anthropic", "uvicorn")

Level = Literal["debug", "info", "warning", "error"]


class _Stderr:
    """The process's stderr as it is at the time of writing: whoever hosts us may replace it.

    A line that cannot be written is lost, not an error of the call that logs
    it: a terminal goes away under a server that goes on.
    """

    def write(self, text: str) -> int:
        try:
            return sys.stderr.write(text)
        except OSError:
            return 0

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()


def configure(
    *, level: Level = "info", form: Literal["json", "console"] = "json", stream: TextIO | None = None
) -> None:
    """Set up logging of the whole process. The last call wins."""
    output = stream if stream is not None else cast(TextIO, _Stderr())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level if form == "console" else structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _mask_secrets,
    ]
    finish: list[Processor]
    if form == "json":
        finish = [
            # Local variables hold what callers said, and secrets: never in a log.
            structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False)),
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    else:
        finish = [
            structlog.dev.ConsoleRenderer(colors=output.isatty(), exception_formatter=structlog.dev.plain_traceback)
        ]
    structlog.configure(
        processors=[*shared, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(output),
        cache_logger_on_first_use=False,
    )
    _Logger.configured += 1
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    hush()


def hush() -> None:
    """Keep libraries quiet, also one that was imported since and took a level from its own environment variable.

    What they report at debug holds what people write.
    """
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(logging.getLogger().level, logging.WARNING))


class _Logger:
    """One of structlog's, made anew when logging is configured anew: to make it is dearer than most lines."""

    configured = 0
    """How often logging was."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._made_at = -1

    def __getattr__(self, level: str) -> Any:
        if self._made_at != _Logger.configured:
            self._made = structlog.get_logger(module=self._module).bind()
            self._made_at = _Logger.configured
        return getattr(self._made, level)


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger; ``name`` (the module) is on every line as ``module``."""
    return cast(FilteringBoundLogger, _Logger(name))


def bind(**values: str) -> None:
    """Put values on every later line of this task and of tasks that it starts."""
    structlog.contextvars.bind_contextvars(**values)


class bound:  # noqa: N801 - is used as a function is
    """Put values on every line within the block, e.g. ``bound(run_id=run.id)``."""

    __slots__ = ("_tokens", "_values")

    def __init__(self, **values: Any) -> None:
        self._values = values

    def __enter__(self) -> None:
        self._tokens = structlog.contextvars.bind_contextvars(**self._values)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        structlog.contextvars.reset_contextvars(**self._tokens)


def _quiet_until_configured() -> None:
    """A library or test that configures nothing sees warnings and worse, on stderr."""
    if not structlog.is_configured():
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS["warning"]),
            logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        )


def _mask_secrets(logger: Any, method: str, event: EventDict) -> EventDict:
    """Secrets given by mistake come out as asterisks, whatever renders the line."""
    for name, value in event.items():
        if isinstance(value, SecretStr | SecretBytes):
            event[name] = str(value)
    return event


_quiet_until_configured()

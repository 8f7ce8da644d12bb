"""A stopwatch that nobody reads, for asking a provider without a generation."""


class Silent:
    """Notes nothing."""

    def sent(self) -> None: ...

    def heard(self) -> None: ...

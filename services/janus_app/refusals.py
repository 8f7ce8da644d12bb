"""What a command refuses by itself."""


class Refused(Exception):
    """The text says what is wrong, and what to do."""

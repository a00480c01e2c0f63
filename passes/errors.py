"""The exception of this package."""


class PassError(RuntimeError):
    """A pass was given a graph it cannot read, or made one that is wrong."""

"""The error that the backend raises while torch.compile runs it."""

from __future__ import annotations

from torch._dynamo.exc import ShortenTraceback

from zigpass.runtime.errors import ZigpassError


class BackendError(ZigpassError, ShortenTraceback):  # type: ignore[misc]  # torch._dynamo is not type-checked here
    """A `ZigpassError` that reaches the user as it is: Dynamo would wrap any other exception in one of its own."""

    def __init__(self, message: str) -> None:
        ShortenTraceback.__init__(self, message, first_useful_frame=None)

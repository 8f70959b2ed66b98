"""Errors that reach a user. Each message says what was got and what is allowed."""


class HeliosError(Exception):
    """Anything this package raises on purpose."""


class InvalidRequestError(HeliosError, ValueError):
    """A request that cannot be served as asked.

    `param` names the field at fault, in the API's words.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class CheckpointError(HeliosError, ValueError):
    """A checkpoint that is wrong, truncated or incomplete; the message names file and key."""


class DeviceError(HeliosError, ValueError):
    """A device or dtype that this machine or this model does not have."""

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


class NotAllowedError(InvalidRequestError):
    """A request that others may make, but not its sender; `code` is the API's word for why."""

    def __init__(self, message: str, *, code: str, param: str) -> None:
        super().__init__(message, param=param)
        self.code = code


class CapacityError(HeliosError):
    """A request that is fine but finds no room now.

    `code` is the API's word for the reason, `retry_after` seconds after which to try again.
    """

    def __init__(self, message: str, *, code: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class CheckpointError(HeliosError, ValueError):
    """A checkpoint that is wrong, truncated or incomplete; the message names file and key."""


class DeviceError(HeliosError, ValueError):
    """A device or dtype that this machine or this model does not have."""


class StorageError(HeliosError):
    """Data that cannot be kept or read back, such as on a full disk; says what and where."""


class RequestFailedError(HeliosError):
    """A request that was accepted but could not be brought to its end."""


class EngineDeadError(HeliosError):
    """The engine has given up, or was closed: it takes no more requests."""

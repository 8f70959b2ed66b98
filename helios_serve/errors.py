"""Exceptions of helios-serve.

Messages are shown to users: each states what was received and what is expected.
"""

import re

PATH = re.compile(r"(?<![\w/:.-])/(?:[^\s/'\":,;()]+/)*([^\s/'\":,;()]+)")
"""An absolute path, not within a URL, and its last part."""


class HeliosError(Exception):
    """Base class of the exceptions that this package raises deliberately."""


class InvalidRequestError(HeliosError, ValueError):
    """The request is invalid.

    `param` is the invalid field, by its name in the HTTP API.
    """

    def __init__(self, message: str, *, param: str) -> None:
        super().__init__(message)
        self.param = param


class NotAllowedError(InvalidRequestError):
    """The sender may not make this request. `code` is the API's error code."""

    def __init__(self, message: str, *, code: str, param: str) -> None:
        super().__init__(message, param=param)
        self.code = code


class CapacityError(HeliosError):
    """The request is valid, but there is no capacity for it now.

    `code` is the API's error code. The client should retry after `retry_after` seconds.
    """

    def __init__(self, message: str, *, code: str, retry_after: float = 5.0) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after


class CheckpointError(HeliosError, ValueError):
    """The checkpoint is invalid, damaged or incomplete. The message names the file and the key."""


class DeviceError(HeliosError, ValueError):
    """The device cannot run the model as configured, or the device or dtype is not available."""


class StorageError(HeliosError):
    """Data cannot be written or read, for example on a full disk. The message names the path.

    `public` is the message for clients, which must not learn the server's paths: by default the
    same one, with the last parts of its paths only.
    """

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = without_paths(message) if public is None else public


class RequestFailedError(HeliosError):
    """An accepted request failed or was cancelled."""


class EngineDeadError(HeliosError):
    """The engine has failed or is closed and accepts no more requests."""


def public_message(error: BaseException) -> str:
    """Return a one-line description of `error` for clients, without paths of the server."""
    if isinstance(error, StorageError):
        return error.public
    return without_paths(describe_error(error))


def without_paths(message: str) -> str:
    """Return a message with each absolute path replaced by its last part."""
    return PATH.sub(r"\1", message)


def describe_error(error: BaseException) -> str:
    """Return a one-line description of `error` for users and logs.

    The message of a `HeliosError` stands alone. Any other message is prefixed with the type of the
    exception, because it may mean little by itself (`KeyError: 'x'`).
    """
    return str(error) if isinstance(error, HeliosError) else f"{type(error).__name__}: {error}"

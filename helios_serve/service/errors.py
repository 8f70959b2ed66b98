"""Errors of the API, shared by every protocol that reports them."""

from helios_serve.errors import (
    CapacityError,
    CheckpointError,
    EngineDeadError,
    HeliosError,
    InvalidRequestError,
    NotAllowedError,
    RequestFailedError,
    StorageError,
    public_message,
)
from helios_serve.logger import logger
from helios_serve.service.protocol import ErrorDetail
from helios_serve.store.files import DamagedFileError
from helios_serve.store.objects.object_store import ObjectStoreError

MAX_MESSAGE = 2000
"""Maximum length of a message, in characters."""
UNAVAILABLE = ("queue_full", "shutting_down")
SIZE_PARAMS = ("size", "width", "height")


class ApiError(Exception):
    """An error response.

    Args:
        status: HTTP status code.
        message: Explanation for a person.
        code: Machine-readable name of the error.
        param: The invalid field, if any.
        retry_after: Seconds after which a retry may succeed, if any.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        if len(message) > MAX_MESSAGE:  # it quotes something that the client sent
            message = f"{message[:MAX_MESSAGE]}..."
        super().__init__(message)
        self.status = status
        self.detail = ErrorDetail(message, type_of(status), param, code)
        self.retry_after = retry_after


def type_of(status: int) -> str:
    """Return the error type that OpenAI's API uses for an HTTP status."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case _ if status < 500:
            return "invalid_request_error"
        case _:
            return "server_error"


def not_found(item_id: str, kind: str = "video") -> ApiError:
    """Return the error for an object that does not exist, or belongs to another tenant."""
    return ApiError(404, f"{kind} {item_id!r} not found", code="not_found")


def as_api_error(error: Exception) -> ApiError:
    """Convert an exception to an ApiError.

    Exceptions that are not HeliosError are logged and reported as "internal error", because their
    messages may contain user data.
    """
    message = str(error)
    match error:
        case ApiError():
            return error
        case NotAllowedError(code=code, param=param):
            return ApiError(403, message, code=code, param=param)
        case InvalidRequestError(param="model"):
            return ApiError(404, message, code="model_not_found", param="model")
        case InvalidRequestError(param=param):
            code = "invalid_size" if param in SIZE_PARAMS else "invalid_value"
            return ApiError(400, message, code=code, param=param)
        case CapacityError(code=code, retry_after=seconds):
            status = 503 if code in UNAVAILABLE else 429
            return ApiError(status, message, code=code, retry_after=seconds)
        case CheckpointError():
            return ApiError(400, public_message(error), code="invalid_value")
        case DamagedFileError():
            logger.error("%s", message)
            return ApiError(500, error.public, code="damaged")
        case ObjectStoreError():
            logger.error("%s", message)
            return ApiError(503, error.public, code="object_store", retry_after=5)
        case StorageError():
            logger.error("%s", message)
            return ApiError(507, error.public, code="storage")
        case EngineDeadError():
            return ApiError(503, public_message(error), code="engine_dead")
        case RequestFailedError():
            return ApiError(500, public_message(error), code="generation_failed")
        case HeliosError():
            return ApiError(500, public_message(error), code="internal_error")
        case _:
            logger.error("a request failed", exc_info=error)
            return ApiError(500, "internal error", code="internal_error")

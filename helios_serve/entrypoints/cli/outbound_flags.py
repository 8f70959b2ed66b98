"""Command-line flags for the hosts to which the server sends requests."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_serve.errors import InvalidRequestError

if TYPE_CHECKING:
    from helios_serve.service.outbound.outbound import Outbound
    from helios_serve.service.webhooks.webhooks import Webhooks
    from helios_serve.store.video_store import VideoStore

SECRET_VARIABLE = "HELIOS_WEBHOOK_SECRET"
MAX_SECRET_FILE = 1 << 16
EXPECTED_SECRET = "whsec_ followed by 24 to 64 bytes in base64"


def add_outbound_flags(parser: Any) -> None:
    group = parser.add_argument_group("outbound requests")
    group.add_argument(
        "--allowed-media-domains",
        action="append",
        default=[],
        metavar="HOST,...",
        help="hosts from which references may be fetched; *.DOMAIN allows all its subdomains "
        "(default: none)",
    )
    group.add_argument(
        "--webhook-url",
        metavar="URL",
        help="https URL that receives an event when a video ends (default: none)",
    )
    group.add_argument(
        "--webhook-secret-file",
        type=Path,
        metavar="FILE",
        help=f"file with the secret that signs webhooks: {EXPECTED_SECRET} (default: the "
        f"environment variable {SECRET_VARIABLE})",
    )
    group.add_argument(
        "--allowed-webhook-domains",
        action="append",
        default=[],
        metavar="HOST,...",
        help="hosts to which webhooks may be sent (default: the host of --webhook-url)",
    )


def make_media(arguments: argparse.Namespace) -> "Outbound":
    """Return the client that fetches references. Raises InvalidRequestError for invalid hosts."""
    from helios_serve.service.media.references import media_outbound

    try:
        return media_outbound(split_hosts(arguments.allowed_media_domains))
    except ValueError as error:
        raise InvalidRequestError(str(error), param="allowed-media-domains") from error


def make_webhooks(arguments: argparse.Namespace, store: "VideoStore") -> "Webhooks | None":
    """Return the webhooks that the flags configure, or None without --webhook-url.

    Without it, stored events are deleted. Raises InvalidRequestError.
    """
    from helios_serve.service.outbound.outbound import Outbound, OutboundError
    from helios_serve.service.outbound.urls import AllowedDomains, parse_url
    from helios_serve.service.webhooks.endpoint import Endpoint
    from helios_serve.service.webhooks.webhooks import Webhooks
    from helios_serve.store.outbox import Outbox

    if arguments.webhook_url is None:
        reject_flags_without_url(arguments)
        Outbox.drop(store.database)
        return None
    try:
        host = parse_url(arguments.webhook_url, ("https",)).host
        allowed = split_hosts(arguments.allowed_webhook_domains) or (host,)
        domains = AllowedDomains(allowed, "--allowed-webhook-domains")
        outbound = Outbound(domains, ("https",))
        url = outbound.parse(arguments.webhook_url)
    except (ValueError, OutboundError) as error:
        raise InvalidRequestError(f"--webhook-url: {error}", param="webhook-url") from error
    endpoint = Endpoint(url, read_secrets(arguments.webhook_secret_file))
    return Webhooks(Outbox(store.database), endpoint, outbound)


def split_hosts(values: list[str]) -> tuple[str, ...]:
    """Split the values of a repeatable flag, each of which may list several hosts."""
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def reject_flags_without_url(arguments: argparse.Namespace) -> None:
    """Raise InvalidRequestError for webhook flags that have no effect without --webhook-url."""
    if arguments.webhook_secret_file is not None or arguments.allowed_webhook_domains:
        raise InvalidRequestError(
            "got --webhook-secret-file or --allowed-webhook-domains without --webhook-url, "
            "expected --webhook-url too",
            param="webhook-url",
        )


def read_secrets(path: Path | None) -> tuple[bytes, ...]:
    """Read the secrets from the file or from the environment variable, which is then removed."""
    from helios_serve.service.webhooks.endpoint import parse_secrets

    from_environment = os.environ.pop(SECRET_VARIABLE, None)
    source = SECRET_VARIABLE if path is None else str(path)
    if path is None and from_environment is None:
        raise InvalidRequestError(
            f"got --webhook-url without a secret, expected --webhook-secret-file FILE or "
            f"{SECRET_VARIABLE}",
            param="webhook-secret-file",
        )
    try:
        if path is None:
            text = from_environment or ""
        else:
            with path.open() as file:
                text = file.read(MAX_SECRET_FILE)
        return parse_secrets(text)
    except OSError as error:
        raise InvalidRequestError(
            f"{source}: {error.strerror}, expected a readable file", param="webhook-secret-file"
        ) from error
    except ValueError as error:
        raise InvalidRequestError(
            f"{source}: {error}, expected {EXPECTED_SECRET}", param="webhook-secret-file"
        ) from None

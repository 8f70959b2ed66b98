"""The TLS certificate of `serve`, and the server's URL."""

import socket
import ssl
from pathlib import Path
from typing import Any

from helios_serve.errors import InvalidRequestError


def add_tls_flags(server: Any) -> None:
    server.add_argument(
        "--ssl-certfile",
        type=Path,
        metavar="FILE.pem",
        help="certificate, followed by its chain: serve over HTTPS (default: none)",
    )
    server.add_argument(
        "--ssl-keyfile",
        type=Path,
        metavar="FILE.pem",
        help="private key of the certificate, unencrypted (default: in --ssl-certfile)",
    )


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raise InvalidRequestError unless the certificate and its private key can be used."""
    if certificate is None:
        if key is not None:
            raise InvalidRequestError(
                "got --ssl-keyfile without --ssl-certfile, expected both", param="ssl-certfile"
            )
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl.SSLError among others
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise InvalidRequestError(
            f"got --ssl-certfile {certificate} and --ssl-keyfile {key or certificate}, expected a "
            f"certificate and its unencrypted private key in PEM format: {reason}",
            param="ssl-certfile",
        ) from error


def address_of(listener: socket.socket, *, is_secure: bool) -> str:
    """Return the URL of the server."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if is_secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

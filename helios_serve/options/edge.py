"""Options of the HTTP edge: which requests are served, how large they may be, and for how long."""

from typing import Annotated

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(ge=1, le=86400)]


class EdgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of connections and requests, before anything is generated."""

    allowed_hosts: Annotated[
        tuple[str, ...],
        Meta(
            description="Names by which this server may be reached, in addition to IP addresses, "
            "localhost and names without a dot; *.DOMAIN allows all its subdomains, * any name. "
            "Checked while there are no API keys.",
            extra={"metavar": "HOST,...", "parser": "names"},
        ),
    ] = ()
    allowed_origins: Annotated[
        tuple[str, ...],
        Meta(
            description="Origins whose pages may call this server (CORS), such as "
            "https://app.example.com; * allows all.",
            extra={"metavar": "ORIGIN,...", "parser": "names"},
        ),
    ] = ()
    root_path: Annotated[
        str,
        Meta(
            description="Path prefix under which a proxy serves this server, such as /video; it "
            "works whether the proxy removes the prefix or not.",
            extra={"metavar": "PATH"},
        ),
    ] = ""
    max_request_text: Annotated[
        int,
        Meta(
            ge=1024,
            le=64 << 20,
            description="Bytes of a request without its images and videos; more is refused.",
            extra={"metavar": "BYTES"},
        ),
    ] = 1 << 20
    max_connections: Annotated[
        int,
        Meta(
            ge=8,
            description="Open connections, fewer if the limit of open files (ulimit -n) is low. "
            "Half of them are kept for clients whose requests were accepted.",
            extra={"metavar": "N"},
        ),
    ] = 2048
    header_timeout: Annotated[
        Seconds,
        Meta(
            description="Seconds within which the header of a request must arrive.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 20.0
    body_timeout: Annotated[
        Seconds,
        Meta(
            description="Seconds for which a request's body may stall; on average it must also "
            "arrive at 1 KiB/s.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 60.0
    keep_alive_timeout: Annotated[
        Seconds,
        Meta(
            description="Seconds for which an idle connection is kept.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 75.0

"""Server options: retention, disk limit, realtime sessions, LoRA adapters and observability."""

import re

import msgspec

from helios_serve.options.edge import EdgeOptions

CELL_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,29}[a-z0-9])?")
"""Names of cells: without an underscore, which separates the parts of an id."""

KEPT_CHUNKS = 64


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the HTTP server.

    - `retention`: seconds for which finished videos and uploaded files are kept; None keeps them
      forever.
    - `max_disk`: bytes that the data folder may take before new videos are refused; None means no
      limit.
    - `session_grace`: seconds for which a realtime session waits for its client to reconnect.
    - `edge`: which requests are served, and how large they may be.
    - `exit_without_workers`: seconds after which the server ends if no worker can be started; None:
      never.
    - `loras`: files of the LoRA adapters that requests may use, by name.
    - `public_metrics`: serve /metrics and /load without an API key.
    - `access_log`: log every request.
    - `kept_chunks`: number of last chunks that readers of a video without an end find.
    - `idle`: seconds after which a video without an end is ended if it has no viewer.
    - `cell`: name of this server behind a balancer, which its ids contain; None: it is the only
      one.
    """

    retention: float | None = None
    max_disk: int | None = None
    session_grace: float = 30.0
    edge: EdgeOptions = EdgeOptions()
    exit_without_workers: float | None = None
    loras: dict[str, str] = {}
    public_metrics: bool = False
    access_log: bool = True
    kept_chunks: int = KEPT_CHUNKS
    idle: float = 300.0
    cell: str | None = None

"""Server options: what the server keeps, and for how long."""

import msgspec


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the server does beside making videos.

    `retention` is how many seconds finished videos and files are kept, `max_disk` how many bytes
    they may take before new ones are refused; None is for ever, and what the disk has. A realtime
    session is kept for `session_grace` seconds when its client has gone.
    """

    retention: float | None = None
    max_disk: int | None = None
    session_grace: float = 30.0

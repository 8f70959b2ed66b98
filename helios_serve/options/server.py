"""Server options: what the server keeps, for how long, and what it offers."""

import msgspec


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the server keeps and offers.

    Finished videos and files are kept for `retention` seconds (None: forever) and may take
    `max_disk` bytes before new ones are refused (None: no limit). A realtime session waits
    `session_grace` seconds for its client to reconnect. `loras` maps the names of LoRA adapters
    that requests may use to their files.
    """

    retention: float | None = None
    max_disk: int | None = None
    session_grace: float = 30.0
    loras: dict[str, str] = {}

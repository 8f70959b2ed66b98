"""The whole API in this process, with nano in a thread.

It starts at once, because no process is started. Its videos show latents as colours: decoding would
take most of a test.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from helios_serve.engine.requests.async_engine import AsyncEngine
from helios_serve.entrypoints.http.app import make_app
from helios_serve.entrypoints.http.connections import HttpConfig
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.server import ServerConfig
from helios_serve.store.keys import KeyStore
from helios_serve.store.video_store import VideoStore
from tests.support.edge_server import serving
from tests.support.engines import core


@contextmanager
def quick_server(
    folder: Path,
    config: ServerConfig | None = None,
    scheduling: SchedulingConfig | None = None,
) -> Iterator[str]:
    """Serve nano on a data folder. Yields the URL."""
    config = config or ServerConfig()
    with closing(VideoStore(folder)) as store, closing(KeyStore(folder)) as keys:
        engine = AsyncEngine({"nano": core(scheduling=scheduling)}, store)
        app = make_app(engine, store, folder, keys, config)
        with serving(app, HttpConfig(app, config.edge, timeout_graceful_shutdown=1)) as port:
            yield f"http://127.0.0.1:{port}"

"""Makes videos, uploads them, and kills itself at a chosen point.

    python -m tests.support.dying_uploader FOLDER URL ENDPOINT POINT COUNT

With the point "", it ends when there is nothing left to do. With a point of a deletion, the videos
are deleted when they are uploaded.
"""

import asyncio
import signal
import sys
from contextlib import closing
from pathlib import Path

from helios_serve.metrics import Metrics
from helios_serve.options.objects import ObjectOptions
from helios_serve.service.videos.finished_files import FinishedFiles
from helios_serve.service.videos.uploader import Uploader
from helios_serve.store.objects.video_objects import open_objects
from helios_serve.store.video_store import VideoStore
from tests.support.deaths import OBJECT_POINTS, dying
from tests.support.objects import make_video

VIDEOS = ("a", "b")


async def upload_all(uploader: Uploader) -> None:
    async with uploader:
        while sum(await uploader.pending()):
            await asyncio.sleep(0.02)


def main(folder: str, url: str, endpoint: str, point: str, count: str) -> None:
    if point:
        owner, name, behind = OBJECT_POINTS[point]
        call = dying(getattr(owner, name), int(count), signal.SIGKILL, behind=behind)
        setattr(owner, name, call)
    options = ObjectOptions(
        object_store=url, object_store_endpoint=endpoint, object_store_drop_local=True
    )
    with closing(VideoStore(Path(folder))) as store:
        objects = open_objects(store, options)
        assert objects is not None
        files = FinishedFiles(store.folder / "finished", store)
        if point:
            for video in VIDEOS:
                make_video(store, video)
        asyncio.run(upload_all(Uploader(objects, store, files, Metrics())))
        if "deletion" in point:
            for video in VIDEOS:
                store.delete(video)
            asyncio.run(upload_all(Uploader(objects, store, files, Metrics())))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""An uploader that is killed at any point loses no object, and leaves none that was deleted."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.store.objects.uploads import PendingObjects, Uploads
from helios_serve.store.video_store import VideoStore
from tests.support.deaths import OBJECT_POINTS
from tests.support.dying_uploader import VIDEOS
from tests.support.objects import CREDENTIALS, files_of, new_bucket, segment
from tests.support.scripts import with_tests


def run(*arguments: str) -> int:
    return subprocess.run(
        [sys.executable, "-m", "tests.support.dying_uploader", *arguments],
        env=os.environ | with_tests() | CREDENTIALS | {"PYTHONSAFEPATH": "1"},
        check=False,
    ).returncode


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("point", OBJECT_POINTS)
def test_a_kill_loses_no_object_and_leaves_none(
    point: str, count: int, tmp_path: Path, s3: str
) -> None:
    """Every point is reached at least twice, since there are two videos."""
    bucket = new_bucket(s3)
    place = (str(tmp_path), bucket.url, bucket.endpoint)
    assert run(*place, point, str(count)) == -signal.SIGKILL
    assert run(*place, "", "0") == 0
    with closing(VideoStore(tmp_path)) as store:
        uploads = Uploads(store.database)
        assert uploads.pending() == PendingObjects(0, 0)
        if "deletion" in point:
            assert bucket.names() == []
            assert store.jobs() == []
            assert [uploads.get(video) for video in VIDEOS] == [None, None]
            return
        assert bucket.names() == [name for video in VIDEOS for name in files_of(video, 2)]
        for video in VIDEOS:
            assert bucket.get(f"{video}/00001.m4s").content == segment(1).fragment
            assert not store.files.segments.folder(video).exists()

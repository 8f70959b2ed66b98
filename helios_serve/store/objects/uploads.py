"""The table of uploads: which objects of each video exist, and which videos have work to do."""

import time
from collections.abc import Callable, Collection
from typing import NamedTuple

import msgspec

from helios_serve.errors import InvalidRequestError
from helios_serve.store.database import Database

UPLOAD_TABLES = """
CREATE TABLE uploads (
    video_id TEXT PRIMARY KEY NOT NULL,
    first_chunk INTEGER NOT NULL,
    next_chunk INTEGER NOT NULL DEFAULT 0,
    has_video INTEGER NOT NULL DEFAULT 0,
    is_dropped INTEGER NOT NULL DEFAULT 0,
    is_deleted INTEGER NOT NULL DEFAULT 0,
    changes INTEGER NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL
);
CREATE INDEX uploads_due ON uploads (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE object_stores (url TEXT PRIMARY KEY NOT NULL);
"""
ADD_ROW = """
    INSERT INTO uploads (video_id, first_chunk, due_at)
    VALUES (NEW.id, NEW.first_chunk, NEW.updated_at)
    ON CONFLICT (video_id) DO UPDATE SET
        changes = changes + 1, due_at = coalesce(due_at, NEW.updated_at)"""
TRIGGERS = (
    f"""
CREATE TRIGGER IF NOT EXISTS upload_of_new_job AFTER INSERT ON jobs
WHEN NEW.next_chunk > NEW.first_chunk
BEGIN {ADD_ROW}; END
""",
    f"""
CREATE TRIGGER IF NOT EXISTS upload_of_change
AFTER UPDATE OF status, first_chunk, next_chunk ON jobs
WHEN NEW.next_chunk < OLD.next_chunk OR NEW.next_chunk > NEW.first_chunk AND (
    NEW.status != OLD.status OR NEW.first_chunk != OLD.first_chunk
    OR NEW.next_chunk != OLD.next_chunk
)
BEGIN {ADD_ROW}, next_chunk = iif(NEW.next_chunk < OLD.next_chunk, 0, next_chunk); END
""",
    """
CREATE TRIGGER IF NOT EXISTS upload_of_deletion AFTER DELETE ON jobs
WHEN NOT EXISTS (SELECT 1 FROM damaged_jobs WHERE id = OLD.id)
BEGIN
    UPDATE uploads SET is_deleted = 1, changes = changes + 1, attempts = 0, due_at = 0
    WHERE video_id = OLD.id;
END
""",
)
"""Record in the transaction that changes a job that its objects must follow.

A job that goes back is uploaded again from its beginning: its chunks are generated again. A job
that is set aside because its row is damaged keeps its objects.
"""


class VideoUpload(msgspec.Struct, frozen=True):
    """The objects of a video.

    - `first_chunk`, `next_chunk`: segments from `first_chunk` to `next_chunk - 1` exist, except
      those before the job's own first chunk.
    - `has_video`: the MP4 of the finished video exists.
    - `is_dropped`: the local segments are deleted, or about to be.
    - `is_deleted`: the video was deleted, and its objects must be.
    - `changes`: how often the job has changed.
    - `attempts`: failed attempts since the last success.
    - `due_at`: when there is work to do, in Unix seconds; None: there is none.
    """

    video_id: str
    first_chunk: int
    next_chunk: int
    has_video: int
    is_dropped: int
    is_deleted: int
    changes: int
    attempts: int
    due_at: float | None


class PendingObjects(NamedTuple):
    """Number of videos with objects to upload, and of deleted ones with objects to delete."""

    uploads: int
    deletions: int


class Uploads:
    """The table of uploads, in the database of the jobs.

    Triggers add a row when a job has its first chunk and make it due when the job changes. They
    exist from the first time that an object store is used, so that deletions are recorded while
    the server runs without one. Every change is durable when the method returns.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def use(self, url: str) -> None:
        """Begin to record uploads to the object store at `url`; earlier videos become due.

        Raises InvalidRequestError if there are objects in another one.
        """
        for (known,) in self._database.run("SELECT url FROM object_stores"):
            if known != url and self._database.run("SELECT 1 FROM uploads LIMIT 1"):
                raise InvalidRequestError(
                    f"got --object-store {url}, but the objects of this data folder are in "
                    f"{known}: use that one, or another --data-dir",
                    param="object_store",
                )
        for statement in TRIGGERS:
            self._database.run(statement)
        self._database.run_all(
            ("DELETE FROM object_stores", ()),
            ("INSERT INTO object_stores VALUES (?)", (url,)),
            (
                "INSERT OR IGNORE INTO uploads (video_id, first_chunk, due_at) "
                "SELECT id, first_chunk, updated_at FROM jobs WHERE next_chunk > first_chunk",
                (),
            ),
        )

    def check_unused(self) -> None:
        """Raise InvalidRequestError if some videos have no local copy, for a server without an
        object store.
        """
        rows = self._database.run("SELECT count(*) AS number FROM uploads WHERE is_dropped")
        if rows[0]["number"]:
            ((url,),) = self._database.run("SELECT url FROM object_stores")
            raise InvalidRequestError(
                f"{rows[0]['number']} videos of this data folder are only in {url}: start with "
                f"--object-store {url}",
                param="object_store",
            )

    def get(self, video_id: str) -> VideoUpload | None:
        rows = self._database.run("SELECT * FROM uploads WHERE video_id = ?", video_id)
        return VideoUpload(**dict(rows[0])) if rows else None

    def due(self, limit: int, *, exclude: Collection[str] = ()) -> list[VideoUpload]:
        """Return up to `limit` videos with work to do, the longest overdue first, except
        `exclude`.
        """
        marks = ", ".join("?" * len(exclude))
        rows = self._database.run(
            f"SELECT * FROM uploads WHERE due_at <= ? AND video_id NOT IN ({marks}) "
            "ORDER BY due_at LIMIT ?",
            self._clock(),
            *exclude,
            limit,
        )
        return [VideoUpload(**dict(row)) for row in rows]

    def pending(self) -> PendingObjects:
        """Return how many videos have work to do, including those that wait for a retry."""
        ((uploads, deletions),) = self._database.run(
            "SELECT count(*) - coalesce(sum(is_deleted), 0), coalesce(sum(is_deleted), 0) "
            "FROM uploads WHERE due_at IS NOT NULL"
        )
        return PendingObjects(uploads, deletions)

    def add_chunk(self, video_id: str, chunk: int, *, before: int) -> None:
        """Record the upload of a chunk's segment, after that of the chunks before it.

        `before` is the next chunk of the row. No effect if the job has gone back meanwhile.
        """
        self._database.run(
            "UPDATE uploads SET next_chunk = ?, attempts = 0 WHERE video_id = ? "
            "AND next_chunk = ? AND ? < (SELECT next_chunk FROM jobs WHERE id = ?)",
            chunk + 1,
            video_id,
            before,
            chunk,
            video_id,
        )

    def add_video(self, video_id: str) -> None:
        """Record the upload of the finished video's MP4."""
        self._database.run("UPDATE uploads SET has_video = 1 WHERE video_id = ?", video_id)

    def remove_before(self, video_id: str, chunk: int) -> None:
        """Record the deletion of the segments before `chunk`."""
        self._database.run("UPDATE uploads SET first_chunk = ? WHERE video_id = ?", chunk, video_id)

    def drop(self, video_id: str) -> None:
        """Record that the local segments are about to be deleted."""
        self._database.run("UPDATE uploads SET is_dropped = 1 WHERE video_id = ?", video_id)

    def start_again(self, video_id: str) -> None:
        """Record that all objects must be uploaded again."""
        self._database.run(
            "UPDATE uploads SET next_chunk = 0, has_video = 0 WHERE video_id = ?", video_id
        )

    def rest(self, upload: VideoUpload) -> None:
        """Record that there is nothing to do, unless the job has changed since `upload` was
        read.
        """
        self._database.run(
            "UPDATE uploads SET due_at = NULL, attempts = 0 WHERE video_id = ? AND changes = ?",
            upload.video_id,
            upload.changes,
        )

    def postpone(self, upload: VideoUpload, until: float) -> None:
        """Count a failed attempt and schedule the next one at `until`, in Unix seconds.

        A deletion that was recorded meanwhile stays due.
        """
        self._database.run(
            "UPDATE uploads SET attempts = attempts + 1, due_at = ? "
            "WHERE video_id = ? AND is_deleted = ?",
            until,
            upload.video_id,
            upload.is_deleted,
        )

    def forget(self, video_id: str) -> None:
        """Delete the row of a deleted video, after its objects were deleted.

        If its id was used again meanwhile, the new video is uploaded.
        """
        with self._database.transaction() as run:
            run("DELETE FROM uploads WHERE video_id = ?", video_id)
            run(
                "INSERT INTO uploads (video_id, first_chunk, due_at) SELECT id, first_chunk, "
                "updated_at FROM jobs WHERE id = ? AND next_chunk > first_chunk",
                video_id,
            )

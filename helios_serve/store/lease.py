"""A lease on a data folder, for shared storage whose file locks do not hold between machines."""

import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Lock, Thread

import msgspec

from helios_serve.errors import StorageError
from helios_serve.logger import logger
from helios_serve.store.files import make_folder, open_private, storage_errors, sync_folder

FOLDER = "lease"
RENEWALS = 5
"""How often the holder renews its lease while it lasts."""
POLLS, MOST_POLL = 10, 1.0
"""How often a server that waits looks while the lease lasts, and the most seconds between."""
HOLD = 2 / 3
"""Share of the lease, from the start of the last renewal, after which its holder ends. The rest is
for what is under way, and for the process to end."""
KEPT = 16
"""Records of former holders that stay, so that a server that saw an old one cannot claim an old
token again."""
LOST = 75
"""Exit status of a process that has lost its lease: EX_TEMPFAIL, start it again."""

Clock = Callable[[], float]


class LeaseLostError(StorageError):
    """The lease has run out, or another server has taken it."""


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of a lease file.

    - `renewal`: grows whenever the holder renews the lease. Others watch for this, and compare no
      clocks of different machines.
    - `seconds`: how long the lease lasts after a renewal.
    - `is_released`: the holder has closed the folder.
    """

    owner: str
    host: str
    pid: int
    renewal: int
    seconds: float
    is_released: bool = False


def boot_time() -> float:
    """Seconds that pass also while the process is stopped or the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The right to write to a data folder, which must be renewed. Thread-safe.

    Each holder has a file in `folder`/lease. Its name is the holder's number, which is the fencing
    token: the highest one holds the folder. It is created exclusively, so two servers cannot have
    the same. `predecessor` is the record of the holder before, if it has not released the folder.
    """

    def __init__(
        self, folder: Path, token: int, record: LeaseRecord, predecessor: LeaseRecord | None
    ) -> None:
        self.token = token
        self.predecessor = predecessor
        self._folder = folder
        self._record = record
        self._next = name_of(folder, token + 1)
        self._guard = Lock()
        self._held_until = boot_time() + HOLD * record.seconds

    @property
    def seconds(self) -> float:
        return self._record.seconds

    @property
    def left(self) -> float:
        """Seconds for which the folder may be written to without a renewal."""
        return self._held_until - boot_time()

    def check(self) -> None:
        """Raise LeaseLostError unless the folder may be written to now. It takes microseconds."""
        if self.left <= 0:
            raise LeaseLostError(
                f"the lease of {self._folder} was not renewed for "
                f"{HOLD * self.seconds:.1f} s: this server may not write any more"
            )
        if self._next.exists():
            raise LeaseLostError(f"another server has taken {self._folder} (lease {self.token})")

    def renew(self) -> None:
        """Extend the lease. Raises LeaseLostError, and StorageError if the storage fails."""
        with self._guard:
            began = boot_time()
            self.check()
            self._write(msgspec.structs.replace(self._record, renewal=self._record.renewal + 1))
            if newest(self._folder) > self.token:
                raise LeaseLostError(f"another server has taken {self._folder}")
            self._held_until = began + HOLD * self.seconds

    def release(self) -> None:
        """Let another server take the folder at once. No effect if the lease is lost."""
        with self._guard:
            try:
                self.check()
            except LeaseLostError:
                return
            self._write(msgspec.structs.replace(self._record, is_released=True))
            self._held_until = -1.0

    def _write(self, record: LeaseRecord) -> None:
        path = name_of(self._folder, self.token)
        with storage_errors("renew", path), path.open("r+b") as file:
            file.write(msgspec.json.encode(record))
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._record = record


def wait_for_lease(folder: Path, seconds: float) -> Lease:
    """Return a lease on a data folder as soon as nobody else holds one.

    A lease is free if it was released, or if its file did not change for as long as it lasts, by
    this machine's clock. Raises StorageError if the storage fails.
    """
    make_folder(folder)
    make_folder(folder / FOLDER)
    seen, since, has_said = b"", boot_time(), False
    while True:
        token, content = read_newest(folder)
        last, now = record_of(content), boot_time()
        lasts = seconds if last is None else max(seconds, last.seconds)
        if content != seen:
            seen, since = content, now
        is_free = token == 0 or (last is not None and last.is_released)
        if is_free or now - since >= lasts:
            lease = claim(folder, token, seconds, None if is_free else last)
            if lease is not None:
                return lease
            continue
        if not has_said:
            has_said = True
            logger.info("%s is held by %s: waiting until it is free", folder, holder_of(last))
        time.sleep(min(MOST_POLL, seconds / POLLS, max(0.01, since + lasts - now)))


def claim(
    folder: Path, token: int, seconds: float, predecessor: LeaseRecord | None
) -> Lease | None:
    """Take the folder after the holder `token`.

    None if another server was faster, or if the storage took so long that the lease has run out:
    the caller then waits for this lease as for any other.
    """
    record = LeaseRecord(
        owner=secrets.token_hex(8),
        host=platform.node(),
        pid=os.getpid(),
        renewal=0,
        seconds=seconds,
    )
    path = name_of(folder, token + 1)
    with storage_errors("create", path):
        try:
            descriptor = open_private(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return None
        lease = Lease(folder, token + 1, record, predecessor)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
    sync_folder(folder / FOLDER)
    try:
        lease.check()
    except LeaseLostError as error:
        logger.warning("%s; trying again", error)
        return None
    for old in tokens(folder):
        if old <= lease.token - KEPT:
            name_of(folder, old).unlink(missing_ok=True)
    return lease


@contextmanager
def kept(lease: Lease, end: Callable[[str], None]) -> Iterator[None]:
    """Renew a lease until the block ends, and then release it.

    If it is lost, `end` is called with the reason, from another thread. It must end the process.
    A renewal that hangs does not delay this.
    """
    stopped = Event()

    def holds(step: Callable[[], None]) -> bool:
        try:
            step()
        except LeaseLostError as error:
            if not stopped.is_set():
                end(str(error))
            return False
        except StorageError as error:
            logger.warning("%s; the server ends in %.1f s without it", error, lease.left)
        return True

    def renew() -> None:
        while not stopped.wait(lease.seconds / RENEWALS) and holds(lease.renew):
            pass

    def watch() -> None:
        while not stopped.wait(max(0.0, lease.left)) and holds(lease.check):
            pass

    threads = [
        Thread(target=work, name=f"lease {work.__name__}", daemon=True) for work in (renew, watch)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        lease.release()


def end_process(reason: str) -> None:
    """End this process at once: what it would still write is another server's."""
    logger.critical("%s; ending at once", reason)
    os._exit(LOST)


def check_not_leased(folder: Path) -> None:
    """Raise StorageError if a server holds, or has lost, a lease of the folder.

    For processes that use the folder without a lease.
    """
    token, content = read_newest(folder)
    last = record_of(content)
    if token and (last is None or not last.is_released):
        raise StorageError(
            f"{folder} is in use with a lease, by {holder_of(last)}: add --data-lease, which waits "
            "until it is free, or stop that server"
        )


def read_newest(folder: Path) -> tuple[int, bytes]:
    """Return the highest token, 0 if there is none, and the content of its file."""
    while True:
        token = newest(folder)
        if not token:
            return 0, b""
        path = name_of(folder, token)
        with storage_errors("read", path):
            try:
                return token, b"%d " % token + path.read_bytes()
            except FileNotFoundError:  # a later holder has deleted it
                continue


def record_of(content: bytes) -> LeaseRecord | None:
    """Return the record after the token; None if it is being written."""
    try:
        return msgspec.json.decode(content.partition(b" ")[2], type=LeaseRecord)
    except msgspec.DecodeError:
        return None


def holder_of(record: LeaseRecord | None) -> str:
    """Return who holds a lease, for a message."""
    return "a server" if record is None else f"{record.host}, process {record.pid}"


def newest(folder: Path) -> int:
    return max(tokens(folder), default=0)


def tokens(folder: Path) -> list[int]:
    with storage_errors("list", folder / FOLDER):
        try:
            return [int(name) for name in os.listdir(folder / FOLDER) if name.isdecimal()]
        except FileNotFoundError:
            return []


def name_of(folder: Path, token: int) -> Path:
    return folder / FOLDER / f"{token:020d}"

"""The folder for files that no table names when the store is opened."""

from datetime import UTC, datetime
from pathlib import Path

from helios_serve.logger import logger
from helios_serve.store.files import make_folder, storage_errors, sync_folder

FOLDER = "lost+found"


class LostAndFound:
    """Moves files of the data folder `root` to `lost+found`, into a folder named by the time.

    Files without a row in a table may be all that is left of videos whose rows were lost, so they
    are never deleted. Below the folder they keep the paths that they had below `root`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.taken: list[Path] = []
        """The folder to which files were moved."""
        self._folder = root / FOLDER / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%fZ}"

    def take(self, path: Path) -> None:
        """Move a file or a folder. Raises StorageError if that fails."""
        target = self._folder / path.relative_to(self.root)
        make_folder(target.parent)
        with storage_errors("set aside", path):
            path.rename(target)
        sync_folder(target.parent)
        sync_folder(path.parent)
        self.taken.append(target)

    def report(self, table: str) -> None:
        """Log which files were moved, if any, because `table` does not name them."""
        if self.taken:
            names = ", ".join(str(path.relative_to(self._folder)) for path in self.taken[:5])
            more = ", ..." if len(self.taken) > 5 else ""
            logger.warning(
                "%s does not name %d files or folders, which are now in %s: %s%s; its last rows "
                "may be lost; delete the files if they are not needed",
                table,
                len(self.taken),
                self._folder,
                names,
                more,
            )

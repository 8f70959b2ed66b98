"""The `helios-serve` command, which keeps the snapshot after every chunk of a video.

Normally, older snapshots are deleted.
"""

import sys
from unittest import mock

from helios_serve.entrypoints.cli.main import main
from helios_serve.store.snapshots import SnapshotStore

if __name__ == "__main__":
    with mock.patch.object(SnapshotStore, "delete_old"):
        sys.exit(main())

"""The `helios-serve` command, which keeps where a video stood behind every one of its chunks.

Otherwise each snapshot replaces the one before it.
"""

import sys
from unittest import mock

from helios_serve.entrypoints.cli.main import main
from helios_serve.store.snapshots import SnapshotStore

if __name__ == "__main__":
    with mock.patch.object(SnapshotStore, "delete_old"):
        sys.exit(main())

"""Log records of this package; commands show them as single lines."""

import logging
import sys

logger = logging.getLogger("helios_serve")


def show_logs(level: int = logging.INFO) -> None:
    """Write records of `level` and above to standard error, once each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("helios-serve: %(message)s"))
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False

"""Descriptions of how a process ended."""

import signal


def describe_exit(exit_code: int | None) -> str:
    """Describe an exit code, as `subprocess` and `multiprocessing` return it; None is unknown."""
    if exit_code is not None and exit_code < 0:
        return f"process killed by {signal.Signals(-exit_code).name}"
    return "process exited" + (f" with status {exit_code}" if exit_code is not None else "")

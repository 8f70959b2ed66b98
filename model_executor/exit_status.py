"""What the end of a process is called."""

import signal


def how_it_ended(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"its process was ended by {signal.Signals(-exit_code).name}"
    return "its process ended" + (f" with status {exit_code}" if exit_code is not None else "")

"""Holds a realtime session: writes the video chunk by chunk, and changes its prompt on the way.

    helios-serve serve                      # in another terminal
    pip install websockets
    python examples/realtime_client.py "a red ball moves right on the sand" --num-frames 330

The file can be played while it grows. docs/live.md describes all messages. A server with API keys
takes one from the environment variable HELIOS_API_KEY.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, BinaryIO

from websockets.sync.client import ClientConnection, connect


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a video live and change its prompt.")
    parser.add_argument("prompt", nargs="?", default="a red ball moves right over a green field")
    parser.add_argument(
        "--then",
        default="a white ball moves left over the dark night",
        help="the prompt after the first chunk",
    )
    parser.add_argument("--url", default="ws://127.0.0.1:8000", help="where the server is")
    parser.add_argument("--size", default="64x64", metavar="WIDTHxHEIGHT")
    parser.add_argument("--num-frames", type=int, default=330, metavar="N")
    parser.add_argument("--transition-chunks", type=int, default=2, metavar="N")
    parser.add_argument("--output", type=Path, default=Path("session.mp4"), metavar="FILE.mp4")
    arguments = parser.parse_args()

    key = os.environ.get("HELIOS_API_KEY")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    start = {
        "type": "session.start",
        "prompt": arguments.prompt,
        "size": arguments.size,
        "num_frames": arguments.num_frames,
    }
    interaction = {
        "event_id": "then",
        "event": {"prompt": arguments.then},
        "transition_chunks": arguments.transition_chunks,
    }
    with (
        connect(
            f"{arguments.url}/v1/realtime/video", additional_headers=headers, max_size=None
        ) as socket,
        arguments.output.open("wb") as file,
    ):
        socket.send(json.dumps(start))
        return receive(socket, file, interaction)


def receive(socket: ClientConnection, file: BinaryIO, interaction: dict[str, Any]) -> int:
    """Write chunks until the session ends; send `interaction` after the first chunk."""
    for received in socket:
        if isinstance(received, bytes):
            file.write(received)  # the first one begins with the header of the MP4
            file.flush()
            continue
        message = json.loads(received)
        match message["type"]:
            case "video.start":
                print(f"{message['session_id']}: started")
            case "video.chunk_metadata":
                report(message)
                if message["generation_chunk_index"] == 0:
                    socket.send(
                        json.dumps({"type": "session.interaction", "interaction": interaction})
                    )
            case "session.done":
                print(f"{file.name}: {message['chunks']} chunks")
                return 0
            case "error":
                print(f"error: {message['message']}", file=sys.stderr)
                if "event_id" not in message:  # the session did not start; else it continues
                    return 1
    return 1


def report(metadata: dict[str, Any]) -> None:
    """Print what the next binary message holds."""
    changes = [what for what in ("started", "active", "completed") if metadata[f"{what}_event_ids"]]
    note = f", prompt switch {' and '.join(changes)}" if changes else ""
    print(f"chunk {metadata['generation_chunk_index']}: {metadata['num_frames']} frames{note}")


if __name__ == "__main__":
    sys.exit(main())

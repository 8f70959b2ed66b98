"""Creates a video with OpenAI's client, shows its progress and downloads it.

    helios-serve serve                      # in another terminal
    pip install openai
    python examples/openai_client.py "a red ball moves right over a green field" --seconds 4

A server with API keys takes one from the environment variable HELIOS_API_KEY.
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

from openai import OpenAI

# The client announces the end of OpenAI's own video service at every call.
warnings.filterwarnings("ignore", "The Sora API is scheduled", DeprecationWarning)


def main() -> int:
    parser = argparse.ArgumentParser(description="Create a video, wait for it and download it.")
    parser.add_argument("prompt", nargs="?", default="a red ball moves right over a green field")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is")
    parser.add_argument("--size", default="64x64", metavar="WIDTHxHEIGHT")
    parser.add_argument("--seconds", default="4", metavar="S")
    parser.add_argument("--output", type=Path, default=Path("video.mp4"), metavar="FILE.mp4")
    arguments = parser.parse_args()

    key = os.environ.get("HELIOS_API_KEY", "none")
    client = OpenAI(base_url=f"{arguments.url}/v1", api_key=key)
    video = client.videos.create(
        prompt=arguments.prompt,
        size=arguments.size,
        seconds=arguments.seconds,
        extra_body={"seed": 7},  # options that OpenAI's client has no name for go here
    )
    while video.status in ("queued", "in_progress"):
        print(f"{video.id}: {video.status}, {video.progress} %")
        time.sleep(1)
        video = client.videos.retrieve(video.id)
    if video.error is not None:
        print(f"{video.id}: {video.error.message}", file=sys.stderr)
        return 1
    client.videos.download_content(video.id).write_to_file(arguments.output)
    print(f"{arguments.output}: {video.seconds} s of {video.size}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

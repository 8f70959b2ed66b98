"""Makes a video of each prompt as one batch: uploads a file, waits for the batch, downloads all.

    helios-serve serve                      # in another terminal
    pip install openai
    python examples/batch.py "a red ball moves right on the sand" --seconds 2 --output videos

The server keeps the batch: this program may be stopped, and the batch be read later by its id.
A server with API keys takes one from the environment variable HELIOS_API_KEY.
"""

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from openai import OpenAI

# The client announces the end of OpenAI's own video service at every call.
warnings.filterwarnings("ignore", "The Sora API is scheduled", DeprecationWarning)

PROMPTS = (
    "a red ball moves right over a green field",
    "a white square goes up over the dark night",
)
ENDED = ("completed", "failed", "cancelled", "expired")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a video of each prompt, as one batch.")
    parser.add_argument("prompts", nargs="*", default=list(PROMPTS))
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the server is")
    parser.add_argument("--size", default="64x64", metavar="WIDTHxHEIGHT")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S")
    parser.add_argument("--output", type=Path, default=Path("videos"), metavar="FOLDER")
    arguments = parser.parse_args()

    key = os.environ.get("HELIOS_API_KEY", "none")
    client = OpenAI(base_url=f"{arguments.url}/v1", api_key=key)
    options = {"size": arguments.size, "seconds": arguments.seconds}
    file = client.files.create(
        file=("requests.jsonl", batch_file(arguments.prompts, options)), purpose="batch"
    )
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/videos",
        completion_window="24h",
    )
    while batch.status not in ENDED:
        time.sleep(1)
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        print(f"{batch.id}: {batch.status}, {counts.completed if counts else 0} completed")

    arguments.output.mkdir(parents=True, exist_ok=True)
    for line in lines_of(client, batch.output_file_id):
        path = arguments.output / f"{line['custom_id']}.mp4"
        client.videos.download_content(line["response"]["body"]["id"]).write_to_file(path)
        print(path)
    errors = lines_of(client, batch.error_file_id)
    for line in errors:
        print(f"{line['custom_id']}: {line['error']['message']}", file=sys.stderr)
    return 0 if batch.status == "completed" and not errors else 1


def batch_file(prompts: list[str], options: dict[str, Any]) -> bytes:
    """One request a line; `helios-serve run-batch` takes the same file."""
    lines = (
        {
            "custom_id": f"video-{number}",
            "method": "POST",
            "url": "/v1/videos",
            "body": {"prompt": prompt, **options},
        }
        for number, prompt in enumerate(prompts, 1)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def lines_of(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    """The lines of a result file; none if there is no such file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


if __name__ == "__main__":
    sys.exit(main())

"""Lists a tenant's videos in several cells, newest first, through their balancer.

    pip install openai
    python examples/list_cells.py --url http://127.0.0.1:8080 --cells a,b,c

Each cell is asked for its own list, and the lists are merged by `created_at`. Videos of the same
second stand in the order of the cells, and in each cell's own order.
"""

import argparse
import heapq
import os
from collections.abc import Iterable, Iterator
from itertools import islice

from openai import OpenAI
from openai.types import Video


def videos_in(client: OpenAI, cell: str) -> Iterator[Video]:
    """The videos of one cell, newest first; pages are requested as they are needed."""
    yield from client.videos.list(limit=100, extra_headers={"x-helios-cell": cell})


def merged(lists: Iterable[Iterator[Video]]) -> Iterator[Video]:
    return heapq.merge(*lists, key=lambda video: video.created_at, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="List the videos of several cells.")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--cells", default="a,b,c", help="names of the cells, with commas")
    parser.add_argument("--limit", type=int, default=20)
    arguments = parser.parse_args()
    key = os.environ.get("OPENAI_API_KEY", "none")
    with OpenAI(base_url=f"{arguments.url}/v1", api_key=key) as client:
        lists = [videos_in(client, cell) for cell in arguments.cells.split(",")]
        for video in islice(merged(lists), arguments.limit):
            print(video.created_at, video.id, video.status)


if __name__ == "__main__":
    main()

"""Realtime sessions over vLLM-Omni's own WebSocket."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.omni_server import SMALL, OmniServer, count_frames
from tests.support.realtime import Chunk, data_of, realtime_client

pytestmark = pytest.mark.vllm_omni


def watch(server: OmniServer, **fields: Any) -> list[Chunk]:
    """The chunks of a session."""
    with realtime_client(server.url) as client:
        client.start(**SMALL | fields)
        chunks, messages = client.rest()
    assert [message["type"] for message in messages] == ["session.done"]
    return chunks


def test_sessions_of_three_lengths_interleave(server: OmniServer) -> None:
    """Two of them begin and end while the third is made, which would take minutes."""
    lengths = (66, 198)
    with realtime_client(server.url) as client, ThreadPoolExecutor(2) as pool:
        client.start(**SMALL, num_frames=33_000)
        long = [client.hear_chunk()]
        others = [pool.submit(watch, server, num_frames=length) for length in lengths]
        while not all(other.done() for other in others):
            long.append(client.hear_chunk())
        long.append(client.hear_chunk())
    sessions = [long, *(other.result() for other in others)]
    frames = [count_frames(data_of(session)) for session in sessions]
    assert frames[1:] == list(lengths)
    whole = 33 * len(long)
    assert frames[0] in (whole - 1, whole), "vLLM-Omni writes the last frame with the next chunk"
    for session, length in zip(sessions, (whole, *lengths), strict=True):
        media = [chunk.metadata for chunk in session if chunk.metadata["kind"] == "media"]
        assert [item["generation_chunk_index"] for item in media] == list(range(length // 33))


def test_a_prompt_takes_effect_at_the_announced_chunk(server: OmniServer) -> None:
    plain = [chunk.data for chunk in watch(server, num_frames=660)]
    with realtime_client(server.url) as client:
        client.start(**SMALL, num_frames=660)
        chunks = [client.hear()]
        client.interact("a yellow car", event_id="turn", transition_chunks=0)
        rest, messages = client.rest()
    assert [message["type"] for message in messages] == [
        "session.interaction.queued",
        "session.done",
    ]
    turned = [chunk for chunk in [*chunks, *rest] if isinstance(chunk, Chunk)]
    same = [old == new.data for old, new in zip(plain, turned, strict=True)]
    (announced,) = [
        chunk.metadata["generation_chunk_index"]
        for chunk in turned
        if chunk.metadata["started_event_ids"] == ["turn"]
    ]
    assert same.index(False) == announced >= 1
    assert turned[announced].metadata["completed_event_ids"] == ["turn"]


def test_a_prompt_comes_over_several_chunks(server: OmniServer) -> None:
    with realtime_client(server.url) as client:
        client.start(**SMALL, num_frames=660)
        client.hear()
        client.interact("a yellow car", event_id="turn", transition_chunks=3)
        chunks, _ = client.rest()
    named = [chunk.metadata for chunk in chunks if chunk.metadata["active_event_ids"] == ["turn"]]
    first = named[0]["generation_chunk_index"]
    assert [item["generation_chunk_index"] for item in named] == [first, first + 1, first + 2]
    assert [item["completed_event_ids"] for item in named] == [[], [], ["turn"]]


def test_what_cannot_be_made_is_told(server: OmniServer) -> None:
    with realtime_client(server.url) as client:
        client.say("session.start", **SMALL | {"size": "100x64"}, prompt="waves", num_frames=33)
        client.started()
        message = client.hear()
    assert isinstance(message, dict)
    assert message["type"] == "error"
    assert "got size 100x64, expected" in message["message"]

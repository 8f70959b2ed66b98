"""Every call of `client.videos`, `client.files` and `client.batches` that OpenAI's client has."""

import io
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.api import SHORT, frames_of, openai
from tests.support.server import Server

CALLS = {
    "videos": {
        "create",
        "create_and_poll",
        "create_character",
        "delete",
        "download_content",
        "edit",
        "extend",
        "get_character",
        "list",
        "poll",
        "remix",
        "retrieve",
    },
    "files": {
        "content",
        "create",
        "delete",
        "list",
        "retrieve",
        "retrieve_content",
        "wait_for_processing",
    },
    "batches": {"cancel", "create", "list", "retrieve"},
}
"""What this file, test_videos_api.py and test_batches_api.py call."""


def test_no_call_of_the_client_is_left_out(client: openai.OpenAI) -> None:
    for name, calls in CALLS.items():
        resource = getattr(client, name)
        public = {
            call
            for call in dir(type(resource))
            if not call.startswith(("_", "with_")) and callable(getattr(type(resource), call))
        }
        assert public == calls


def test_uploads_are_edited_and_extended(client: openai.OpenAI, finished: Any) -> None:
    data = client.videos.download_content(finished.id).read()
    video = ("dog.mp4", io.BytesIO(data), "video/mp4")
    edited = client.videos.edit(prompt="it moves", video=video, extra_body={"size": "64x64"})
    video = ("dog.mp4", io.BytesIO(data), "video/mp4")
    seconds: Any = "2"
    longer = client.videos.extend(
        prompt="it moves", seconds=seconds, video=video, extra_body={"size": "64x64"}
    )
    for made, frames in ((edited, 99), (longer, 48)):
        done = client.videos.poll(made.id, poll_interval_ms=100)
        assert done.status == "completed"
        assert len(frames_of(client.videos.download_content(done.id).read())) == frames


def test_characters_are_not_supported(client: openai.OpenAI, finished: Any) -> None:
    """The client does not retry, because that could not succeed."""
    with pytest.raises(openai.APIStatusError, match="characters are not supported") as caught:
        client.videos.create_character(name="dog", video=("dog.mp4", b"x"))
    assert (caught.value.status_code, caught.value.code) == (501, "not_supported")
    assert caught.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.APIStatusError, match="characters are not supported"):
        client.videos.get_character(finished.id)


def test_old_names_of_calls_work(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", b"one"), purpose="batch")
    with pytest.warns(DeprecationWarning, match="content"):
        assert client.files.retrieve_content(file.id) == "one"
    client.files.delete(file.id)


def test_errors_have_the_clients_classes(client: openai.OpenAI) -> None:
    for fields, kind, code in (
        ({"size": "100x100"}, openai.BadRequestError, "invalid_size"),
        ({"model": "sora-2"}, openai.NotFoundError, "model_not_found"),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "invalid_value"),
    ):
        with pytest.raises(kind) as caught:
            client.videos.create(prompt="x", **fields)
        assert caught.value.code == code
        assert caught.value.request_id


def test_a_connection_that_breaks_is_tried_again(server: Server) -> None:
    """With an idempotency key, a request whose response was lost creates one video."""
    sent: list[httpx.Request] = []

    class Breaks(httpx.HTTPTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            sent.append(request)
            answer = super().handle_request(request)
            if len(sent) == 1:
                answer.close()
                raise httpx.ReadError("the answer was lost", request=request)
            return answer

    with (
        httpx.Client(transport=Breaks()) as through,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=through) as client,
    ):
        key = {"idempotency-key": "a lost answer"}
        video = client.videos.create(prompt="waves", extra_headers=key, **SHORT)
        assert len(sent) == 2
        assert [item.id for item in client.videos.list(limit=2)][0] == video.id
        again = client.videos.create(prompt="waves", extra_headers=key, **SHORT)
        assert again.id == video.id
        client.videos.delete(video.id)

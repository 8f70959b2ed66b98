"""Expiry and reuse of idempotency keys."""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from helios_serve.service.errors import ApiError
from helios_serve.service.ids import Ids, cell_of
from helios_serve.service.videos import idempotency
from helios_serve.service.videos.idempotency import IdempotencyKeys, KeyedRequest
from helios_serve.store.video_store import VideoStore
from helios_serve.video_request import VideoRequest


@pytest.fixture
def store(tmp_path: Path) -> Iterator[VideoStore]:
    with closing(VideoStore(tmp_path)) as opened:
        yield opened


def use(store: VideoStore, key: str, cell: str | None = None) -> KeyedRequest:
    """Find a key, and store a video if it has no recent one."""
    keyed = asyncio.run(
        IdempotencyKeys(store, Ids(cell)).find(key, "acme", "/v1/videos", {"prompt": "waves"})
    )
    assert keyed is not None
    if keyed.job is None:
        store.accept(keyed.claim(VideoRequest(request_id="", prompt="waves")), num_chunks=1)
    return keyed


def test_keys_are_found_when_the_server_has_become_a_cell(store: VideoStore) -> None:
    before = use(store, "k")
    after = use(store, "k", "a")
    assert after.video_id == before.video_id
    assert after.job is not None
    new = use(store, "other", "a")
    assert cell_of(new.video_id) == "a"
    assert use(store, "other", "a").job is not None


def test_an_expired_key_makes_a_new_video_up_to_a_limit(
    store: VideoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = use(store, "k")
    assert use(store, "k").video_id == first.video_id
    monkeypatch.setattr(idempotency, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(idempotency, "MAX_USES", 2)
    second = use(store, "k")
    assert second.video_id != first.video_id
    with pytest.raises(ApiError, match="got Idempotency-Key 'k', which has 2 stored videos") as got:
        use(store, "k")
    assert (got.value.status, got.value.detail.param) == (400, "Idempotency-Key")
    assert use(store, "other").job is None
    store.delete(first.video_id)
    assert use(store, "k").video_id == first.video_id

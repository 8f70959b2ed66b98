"""The playground in a real browser, against a server as users start it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx2 as httpx
import numpy as np
import pytest
import torch
from playwright.sync_api import APIResponse, Browser, Route
from torch import Tensor

from helios_serve.entrypoints.cli.main import main
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.model_executor.worker.tensors import as_tensor
from helios_serve.store.snapshots import SnapshotStore
from tests.support.api import frames_of
from tests.support.browser import Playground, playground, running_browser
from tests.support.server import Server, running_server

pytestmark = pytest.mark.slow

SMALL = {"size": "64x64", "seed": 5}
MADE = "document.querySelectorAll('.cells .made').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as started:
        yield started


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Playground]:
    with playground(browser, server.url) as shown:
        yield shown


def place(page: Playground, selector: str) -> float:
    """The left edge of an element, in pixels."""
    return float(page.get(f"document.querySelector({selector!r}).getBoundingClientRect().left"))


def test_a_video_plays_while_it_is_made_and_turns_at_the_marked_edge(
    browser: Browser, tmp_path: Path
) -> None:
    """Before the edge, all frames and latents equal those without the switch; after it, none."""
    folder = tmp_path / "data"
    flags = ("nano", "--device", "cpu", "--batch-invariant")
    with (
        running_server(folder, *flags, module="tests.support.remembering_cli") as server,
        playground(browser, server.url) as page,
        httpx.Client(base_url=server.url, timeout=120) as http,
    ):
        switched, edge = watch_and_switch(page)
        body = {"prompt": "a lighthouse", "num_frames": CHUNK_FRAMES * (edge + 2)}
        plain = http.post("/v1/videos", json=body | {"steps": [20, 20, 20]} | SMALL).json()["id"]
        videos = (switched, plain)
        frames = [content_of(http, video)[: CHUNK_FRAMES * (edge + 2)] for video in videos]
    same = (frames[0] == frames[1]).all(axis=(1, 2, 3))
    assert same[: CHUNK_FRAMES * edge].all()
    assert not same[CHUNK_FRAMES * edge :].any()
    latents = [latents_of(folder, video, edge + 2) for video in videos]
    equal = [torch.equal(*pair) for pair in zip(*latents, strict=True)]
    assert equal == [True] * edge + [False] * 2


def watch_and_switch(page: Playground) -> tuple[str, int]:
    """Switch the prompt of a video while it is watched. Return the video and the chunk."""
    video = page.create("a lighthouse", seconds=120, steps="20,20,20", **SMALL)
    page.wait("$('video').currentTime > 0.1")
    first = page.get("$('video').getVideoPlaybackQuality().totalVideoFrames")
    page.wait(f"$('video').getVideoPlaybackQuality().totalVideoFrames > {first}")
    assert page.get(MADE) < page.get("document.querySelectorAll('.cells span').length") == 88

    page.page.fill("#switch-prompt", "lightning")
    page.page.press("#switch-prompt", "Enter")
    edge = int(page.wait("document.querySelector('.mark')?.dataset.chunk"))
    assert f"from chunk {edge} on" in page.page.inner_text("#switch .note")
    page.wait(f"document.querySelectorAll('.cells span')[{edge + 1}].classList.contains('made')")
    assert page.get("document.querySelector('.mark').className") == "mark"  # no more to come
    assert page.page.inner_text(".mark") == "lightning"
    cell = f".cells span:nth-child({edge + 1})"
    side = "right" if page.get("!!document.querySelector('.mark.left')") else "left"
    mark = page.get(f"document.querySelector('.mark').getBoundingClientRect().{side}")
    assert mark == pytest.approx(place(page, cell), abs=3)
    page.page.press("#act-cancel", "Enter")
    page.wait("$('stage-status').textContent.startsWith('Cancelled')")
    return video, edge


def content_of(http: httpx.Client, video: str) -> Any:
    """Wait until the video ends, and return all frames."""
    with http.stream("GET", f"/v1/videos/{video}/events") as events:
        events.read()
    return frames_of(http.get(f"/v1/videos/{video}/content").content)


def latents_of(folder: Path, video: str, count: int) -> list[Tensor]:
    """Return the latents of a video's first chunks from the data folder of an ended server."""
    snapshots = SnapshotStore(folder / "snapshots")
    tails = [snapshots.get(video, chunk + 1).tail for chunk in range(count)]
    return [as_tensor(tail) for tail in tails if tail is not None]


def test_deleting_asks_once_and_needs_no_mouse(page: Playground, http: httpx.Client) -> None:
    video = page.create("waves", seconds=1, **SMALL)
    keys = page.page.keyboard
    page.page.press("#act-delete", "Enter")
    page.wait("$('delete-dialog').open")
    keys.press("Escape")
    page.wait("!$('delete-dialog').open")
    assert http.get(f"/v1/videos/{video}").status_code == 200
    page.page.press("#act-delete", "Enter")
    page.wait("$('delete-dialog').open")
    keys.press("Tab")
    keys.press("Enter")
    page.wait("$('stage-status').textContent === 'The video was deleted.'")
    assert page.get("document.activeElement.id") == "stage"
    assert http.get(f"/v1/videos/{video}").status_code == 404
    page.wait(f"!{row_of(video)}")


def row_of(video: str) -> str:
    return f"document.querySelector('#videos [data-id={video}]')"


def test_a_late_answer_brings_nothing_deleted_back(page: Playground) -> None:
    late: list[tuple[Route, APIResponse]] = []
    page.page.route("**/v1/videos?*", lambda route: late.append((route, route.fetch())), times=1)
    video = page.create("waves", seconds=1, **SMALL)
    page.wait(row_of(video))
    page.page.press("#act-delete", "Enter")
    page.page.press("#delete-dialog [value=yes]", "Enter")
    page.wait(f"!{row_of(video)}")
    [(route, answer)] = late
    assert video in answer.text()
    with page.page.expect_event("requestfinished"):
        route.fulfill(response=answer)
    page.page.wait_for_timeout(100)
    assert not page.get(f"!!{row_of(video)}")


def test_what_the_server_refuses_is_told_at_its_field(page: Playground) -> None:
    page.page.fill("#prompt", "a fox")
    page.page.fill("#seconds", "-1")
    page.page.click("#create [type=submit]")
    page.wait("!document.querySelector('#create .error').hidden")
    assert "seconds: got -1 seconds" in page.page.inner_text("#create .error")
    assert page.get("document.activeElement.id") == "seconds"
    assert page.get("$('seconds').getAttribute('aria-invalid')") == "true"
    assert page.get("$('prompt').value") == "a fox"


def test_from_a_picture_then_extended_remixed_and_taken_up_again(
    page: Playground, http: httpx.Client, tmp_path: Path
) -> None:
    picture = tmp_path / "picture.png"
    with av.open(str(picture), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb24"
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 90, np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    page.page.set_input_files("#reference", picture)
    assert "picture.png" in page.page.inner_text("#drop")
    source = page.create("a fox", seconds=1.375, **SMALL)
    page.wait("$('stage-status').textContent === 'Complete'")
    page.wait("$('video').ended")

    page.page.press("#act-extend", "Enter")
    page.page.fill("#extend-seconds", "1")
    page.page.fill("#extend-prompt", "it sleeps")
    page.page.press("#extend-prompt", "Enter")
    page.wait(f"location.hash !== '#{source}' && !$('stage-body').hidden")
    page.wait("$('stage-status').textContent === 'Complete'")
    longer = http.get(f"/v1/videos/{page.get('location.hash.slice(1)')}").json()
    assert (longer["relation"], longer["parent_video_id"]) == ("extension", source)
    assert longer["num_frames"] == 57
    assert "it sleeps" in page.page.inner_text("#switches")
    page.wait("$('video').currentTime > 1")
    page.get("$('video').pause()")
    left = page.get("$('video').currentTime")
    page.page.reload()
    page.wait(f"$('video').currentTime >= {left - 0.3}")

    page.page.press("#act-remix", "Enter")
    page.page.fill("#remix-prompt", "a wolf")
    page.page.press("#remix-prompt", "Enter")
    page.wait("$('stage-title').textContent === 'a wolf'")
    remixed = http.get(f"/v1/videos/{page.get('location.hash.slice(1)')}").json()
    assert remixed["relation"] == "remix"
    with page.page.expect_download() as download:
        page.wait("!$('act-download').disabled")
        page.page.press("#act-download", "Enter")
    assert len(frames_of(Path(download.value.path()).read_bytes())) == 57


def test_events_go_on_behind_the_last_one_after_a_break(
    page: Playground, http: httpx.Client, finished: Any
) -> None:
    """The first answer ends in the middle of an event."""
    address = f"/v1/videos/{finished.id}/events"
    told = http.get(address).text
    cut = told.index("id: 1\n") + 20
    sent: list[str | None] = []

    def answer(route: Any) -> None:
        sent.append(route.request.headers.get("last-event-id"))
        if len(sent) > 1:
            route.continue_()
            return
        route.fulfill(body=told[:cut], content_type="text/event-stream")

    page.page.route(f"**{address}", answer)
    page.get(f"location.hash = '{finished.id}'")
    page.wait("$('stage-status').textContent.includes('connection was lost')")
    page.wait("$('stage-status').textContent === 'Complete'")
    assert sent == [None, "0"]
    assert page.get(MADE) == 2


def test_the_list_comes_in_pages_and_numbers_are_live(page: Playground, http: httpx.Client) -> None:
    body = {"prompt": "one of many", "size": "64x64", "num_frames": 1}
    made = [http.post("/v1/videos", json=body).json()["id"] for _ in range(11)]
    page.page.reload()
    page.wait("document.querySelectorAll('#videos li').length === 10 && !$('more').hidden")
    page.page.press("#more", "Enter")
    page.wait("document.querySelectorAll('#videos li').length > 10")
    shown = page.get("[...document.querySelectorAll('#videos li')].map((row) => row.dataset.id)")
    assert shown[:11] == made[::-1]
    page.wait("$('live-workers').textContent === '1 of 1'")
    long = body | {"num_frames": 9900}
    made.append(http.post("/v1/videos", json=long).json()["id"])
    page.wait("Number($('live-fps').textContent) > 0")
    assert page.page.inner_text("#health") == "ready"
    for video in made:
        http.delete(f"/v1/videos/{video}")


def test_a_newcomer_sees_what_to_do(browser: Browser, tmp_path: Path) -> None:
    """An empty list offers the model's prompts, and the page says which model shows noise."""
    flags = ("nano", "nano-random", "--device", "cpu")
    with (
        running_server(tmp_path / "data", *flags) as server,
        playground(browser, server.url) as page,
    ):
        page.wait("$('examples').open && $('samples').children.length > 1")
        assert not page.page.is_visible("#random-weights")
        page.page.select_option("#model", "nano-random")
        assert page.page.inner_text("#random-weights").startswith("nano-random has random weights")
        page.page.select_option("#model", "nano")
        assert not page.page.is_visible("#random-weights")
        model = httpx.get(f"{server.url}/v1/models/nano").json()
        sizes = page.get("[...$('size').options].map((option) => option.value)")
        assert sizes == model["sizes"]
        for offered in ("#samples button", "#prompts option"):
            assert page.page.locator(offered).all_inner_texts() == model["prompts"]
        page.page.press("#samples button", "Enter")
        sample = page.get("$('prompt').value")
        assert sample == model["prompts"][0]
        page.create(sample, size=sizes[-1], seconds=1)
        page.wait("$('stage-status').textContent === 'Complete'")
        page.wait("document.querySelector('#videos img')?.naturalWidth === 64")
        assert page.page.inner_text("#videos .prompt") == sample
        assert page.get("$('list-empty').hidden && !$('examples').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_in_light_and_dark(browser: Browser, server: Server, scheme: str) -> None:
    phone = {"width": 360, "height": 740}
    with playground(browser, server.url, viewport=phone, color_scheme=scheme) as page:
        assert not page.page.is_visible("#live-workers")
        page.page.press("#live summary", "Enter")
        assert page.page.is_visible("#live-workers")
        page.page.press("#live summary", "Enter")
        page.create("a very long prompt " * 20, seconds=1, **SMALL)
        page.wait("$('video').currentTime > 0.1")
        assert page.get("document.documentElement.scrollWidth") == 360
        colour = page.get("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)")
        assert (int(colour[0]) > 128) == (scheme == "light")
        top, bottom = page.get(
            "(({top, bottom}) => [top, bottom])($('video').getBoundingClientRect())"
        )
        assert 0 <= top < bottom <= 740


def test_with_keys_the_page_asks_for_one_and_sends_it_along(
    browser: Browser, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "data"
    main(["keys", "create", "--tenant", "acme", "--data-dir", str(folder)])
    key = capsys.readouterr().out.strip()
    with (
        running_server(folder, "nano", "--device", "cpu") as server,
        playground(browser, server.url) as page,
    ):
        page.wait("$('list-error').textContent.includes('API key')")
        assert "API key" in page.wait("$('live-problem').textContent")
        page.page.press("#key-open", "Enter")
        page.page.fill("#key", key)
        page.page.press("#key", "Enter")
        page.wait("!$('list-empty').hidden && $('list-error').hidden")
        page.create("waves", seconds=1, **SMALL)
        page.wait("$('video').currentTime > 0.1")
        page.page.reload()
        page.wait("$('video').currentTime > 0.1")
        assert [url for url in page.asked if key in url] == []

"""Videos through the real SGLang's own API, on a tiny checkpoint."""

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from helios_serve.integrations.host import EngineHost
from helios_serve.integrations.requests import ForeignRequest
from helios_serve.integrations.settings import EngineSettings
from tests.support.lora_files import write_lora
from tests.support.models import load_model
from tests.support.sglang_server import SGLang, running_sglang

pytestmark = pytest.mark.sglang

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

OPTIONS = {"device": "cpu", "dtype": "float32", "batch_invariant": True, "history_blocks": 200}
SMALL = {"prompt": "a dog runs", "size": "64x64", "seed": 3, "num_frames": 33}
LARGE = SMALL | {"size": "128x128"}
"""A video that takes 116 of the 200 blocks, so that two do not fit."""


@pytest.fixture(scope="module")
def server(
    checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SGLang]:
    folder = tmp_path_factory.mktemp("sglang")
    with running_sglang(checkpoints["distilled"], folder, OPTIONS) as started:
        yield started


@pytest.fixture(scope="module")
def own(checkpoints: dict[str, Path]) -> Iterator[EngineHost]:
    """Our engine alone."""
    host = EngineHost(str(checkpoints["distilled"]), EngineSettings.read(OPTIONS, "test"))
    host.wait_ready()
    yield host
    host.close()


def alone(host: EngineHost, frames: int, **references: Any) -> list[Pixels]:
    """Return the chunks of the small video from our engine alone."""
    options = {"width": 64, "height": 64, "num_frames": frames, "seed": SMALL["seed"]}
    foreign = ForeignRequest(request_id="own", prompt="a dog runs", options=options, **references)
    video = host.submit(foreign.to_video_request(host.model, host.config))
    found = []
    for chunk in video.chunks():
        assert chunk.frames is not None
        found.append(np.frombuffer(chunk.frames.data, np.uint8).reshape(-1, 64, 64, 3))
    return found


def decoded(content: bytes) -> Pixels:
    with av.open(io.BytesIO(content), "r") as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).astype(np.uint8)


def distance(one: Pixels, other: Pixels) -> float:
    """Return the difference of means of 8 x 8 pixels, because compression changes noise."""
    assert one.shape == other.shape
    frames, height, width, _ = one.shape
    difference = (one.astype(float) - other).reshape(frames, height // 8, 8, width // 8, 8, 3)
    return float(np.abs(difference.mean((2, 4))).mean())


def red_picture() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 30, 30)).save(file, "png")
    return file.getvalue()


def test_videos_of_different_kinds_are_made_together(server: SGLang) -> None:
    """While one runs that would take minutes and is then deleted."""
    long = server.create(**SMALL | {"num_frames": 33_000})
    while server.video(long)["progress"] == 0:
        time.sleep(0.02)
    with ThreadPoolExecutor(3) as pool:
        others = [{"size": "128x64"}, {"steps": [1, 1, 1], "num_frames": 40}, {"num_frames": 660}]
        names = list(pool.map(lambda fields: server.create(**SMALL | fields), others))
        finished = list(pool.map(server.finished, names))
    assert server.video(long)["status"] == "in_progress"
    assert all(entry["status"] == "completed" for entry in finished), finished
    assert [decoded(server.content(name)).shape[:3] for name in names] == [
        (33, 64, 128),
        (40, 64, 64),
        (660, 64, 64),
    ]
    assert server.http.delete(f"/v1/videos/{long}").status_code == 200


def test_two_equal_videos_complete_together(server: SGLang) -> None:
    names = [server.create(**SMALL | {"num_frames": 330}) for _ in range(2)]
    before = between = after = 0
    while after < 100 or between < 100:
        before, between, after = (server.video(names[at])["progress"] for at in (0, 1, 0))
        assert before - 30 <= between <= after + 30
    one, other = (decoded(server.content(name)) for name in names)
    assert np.array_equal(one, other)


def test_a_picture_starts_the_video(server: SGLang, own: EngineHost) -> None:
    fields = {name: str(value) for name, value in SMALL.items()}
    answer = server.http.post(
        "/v1/videos", data=fields, files={"input_reference": ("red.png", red_picture())}
    )
    assert answer.status_code == 200, answer.text
    name = answer.json()["id"]
    assert server.finished(name)["status"] == "completed"
    made = decoded(server.content(name))
    picture = Image.open(io.BytesIO(red_picture()))
    (expected,), (plain,) = alone(own, 33, image=picture), alone(own, 33)
    assert distance(made, expected) < distance(made, plain) / 3


def test_a_video_goes_on_in_another(server: SGLang, own: EngineHost, tmp_path: Path) -> None:
    before = server.create(**SMALL | {"num_frames": 66, "seed": 9})
    server.finished(before)
    file = tmp_path / "before.mp4"
    file.write_bytes(server.content(before))
    name = server.create(**SMALL, video_path=str(file))
    assert server.finished(name)["status"] == "completed"
    made = decoded(server.content(name))
    (expected,), (plain,) = alone(own, 33, video=file), alone(own, 33)
    assert distance(made, expected) < distance(made, plain) / 3


def test_one_order_gives_several_videos(server: SGLang) -> None:
    several = server.create(**SMALL, n=2)
    entry = server.finished(several)
    assert entry["num_outputs"] == 2, entry
    second = server.create(**SMALL | {"seed": 4})
    server.finished(second)
    one, other = (decoded(server.content(several, index)) for index in range(2))
    assert not np.array_equal(one, other)
    assert np.array_equal(other, decoded(server.content(second)))


def test_an_adapter_belongs_to_its_request(
    server: SGLang, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    model = load_model(str(checkpoints["distilled"]))
    assert model.transformer is not None
    adapter = write_lora(tmp_path / "style.safetensors", model.transformer)
    names = [server.create(**SMALL, lora=str(adapter)), server.create(**SMALL)]
    assert all(server.finished(name)["status"] == "completed" for name in names)
    styled, plain = (decoded(server.content(name)) for name in names)
    assert distance(styled, plain) > 1


def test_a_video_that_cannot_be_made_fails_alone(server: SGLang) -> None:
    good = server.create(**SMALL | {"num_frames": 132})
    bad = server.create(**SMALL, lora="/no/such/adapter.safetensors")
    entry = server.finished(bad)
    assert entry["status"] == "failed"
    assert "/no/such/adapter.safetensors" in entry["error"]["message"]
    assert server.finished(good)["status"] == "completed"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": "100x64"}, "got size 100x64, expected WIDTHxHEIGHT"),
        ({"guidance_scale": 5}, "got guidance_scale 5.0 with a distilled checkpoint"),
        ({"num_inference_steps": 10}, "got num_inference_steps=10 with a distilled checkpoint"),
        ({"enable_teacache": True}, "unsupported option enable_teacache"),
        ({"video_path": "/no/video.mp4"}, "/no/video.mp4"),
    ],
)
def test_what_is_wrong_is_told_at_once(
    server: SGLang, fields: dict[str, Any], message: str
) -> None:
    answer = server.http.post("/v1/videos", json=SMALL | fields)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


def test_a_deleted_video_frees_its_blocks(server: SGLang) -> None:
    long = server.create(**LARGE | {"num_frames": 3300})
    waiting = server.create(**LARGE)
    while server.video(long)["progress"] < 3:
        time.sleep(0.02)
    assert server.video(waiting)["progress"] == 0
    assert server.http.delete(f"/v1/videos/{long}").status_code == 200
    assert server.finished(waiting)["status"] == "completed"


def test_a_realtime_session_is_one_video(server: SGLang, own: EngineHost) -> None:
    expected = alone(own, 132)
    with server.realtime(**SMALL | {"max_chunks": 4}) as session:
        made = [session.chunk() for _ in range(4)]
    assert all(np.array_equal(*pair) for pair in zip(made, expected, strict=True))


def test_a_realtime_session_starts_from_a_picture(server: SGLang, own: EngineHost) -> None:
    picture = Image.open(io.BytesIO(red_picture()))
    expected = alone(own, 33, image=picture)
    with server.realtime(**SMALL | {"max_chunks": 1, "first_frame": red_picture()}) as session:
        assert np.array_equal(session.chunk(), expected[0])


def test_a_prompt_event_turns_the_session(server: SGLang, own: EngineHost) -> None:
    expected = alone(own, 396)
    with server.realtime(**SMALL) as session:
        same = [np.array_equal(session.chunk(), expected[0])]
        session.prompt("waves rise")
        while all(same[-1:]) and len(same) < len(expected):
            same.append(np.array_equal(session.chunk(), expected[len(same)]))
        turned = len(same) - 1
        after = [np.array_equal(session.chunk(), expected[turned + 1 + i]) for i in range(2)]
    assert 1 <= turned < len(expected) - 3
    assert all(same[:turned])
    assert not any([same[turned], *after])


def test_a_client_that_leaves_frees_the_blocks(server: SGLang) -> None:
    with server.realtime(**LARGE) as session:
        session.chunk()
        waiting = server.create(**LARGE)
        session.chunk()
        assert server.video(waiting)["progress"] == 0
    assert server.finished(waiting)["status"] == "completed"


def test_a_session_that_cannot_be_made_says_why(server: SGLang) -> None:
    with server.realtime(**SMALL | {"size": "100x64"}) as session:
        assert "got size 100x64" in session.message()["content"]

"""`helios-serve generate` and the Python API, on the built-in model, as a user runs them."""

import re
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helios_serve.entrypoints.cli.main import main
from helios_serve.errors import InvalidRequestError
from helios_serve.model_executor.models.vae import Vae
from helios_serve.offline import Helios
from helios_serve.options.sampling import PromptSwitch, default_size
from tests.support.command_line import without_progress
from tests.support.engines import colours
from tests.support.models import load_model
from tests.support.video_files import counted, video
from tests.support.videos import Case, run_sessions

FAST = ["--size", "64x64", "--steps", "1,1,1"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are the latents' colours: decoding would take most of a test."""
    monkeypatch.setattr(Vae, "decode", lambda _, latents: colours(latents))


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def generate(*arguments: object) -> int:
    return main(["generate", "a dog runs", *FAST, *map(str, arguments)])


@pytest.mark.parametrize("frames", [1, 33, 40])
def test_the_file_has_exactly_the_frames_asked_for(
    frames: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "video.mp4"
    assert generate("--num-frames", frames, "--output", path) == 0
    assert count_frames(path) == frames
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{path}: {frames} frames, ")
    assert "random weights" not in printed.err


@pytest.mark.usefixtures("quick")
def test_random_weights_are_announced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate("--model", "nano-random", "--output", tmp_path / "video.mp4") == 0
    assert "nano-random has random weights: its videos show noise" in capsys.readouterr().err


@pytest.mark.usefixtures("quick")
def test_seconds_and_fps_give_the_length(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    assert generate("--seconds", 1.5, "--fps", 30, "--output", path) == 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.frames, stream.average_rate) == (45, Fraction(30))


@pytest.mark.usefixtures("quick")
def test_latents_are_those_of_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "latents.safetensors"
    options = ["--seed", 7, "--num-frames", 66, "--negative-prompt", "static, blurred"]
    assert generate(*options, "--output", tmp_path / "x.mp4", "--output-latents", path) == 0
    case = Case("distilled", height=64, width=64, chunks=2, steps=(1, 1, 1), prompt="a dog runs")
    case = case.with_defaults()
    expected = run_sessions(load_model("nano"), [case.request()])["session"]
    assert torch.equal(load_file(path)["latents"], expected)


def test_what_takes_less_memory_makes_the_same_latents_or_nearly_so(tmp_path: Path) -> None:
    """With random weights, whose error in FP8 is small: nano's narrow layers have 7 %."""
    latents, videos = [], []
    for flags in ([], ["--offload"], ["--decode-dtype", "bfloat16"], ["--quantization", "fp8"]):
        path, video = tmp_path / "latents.safetensors", tmp_path / "x.mp4"
        options = ["--num-frames", 33, "--output", video, "--output-latents", path]
        options += ["--model", "nano-random"]
        assert generate(*options, *flags) == 0
        latents.append(load_file(path)["latents"])
        videos.append(video.read_bytes())
    plain, offloaded, decoded, quantized = latents
    assert torch.equal(plain, offloaded)
    assert torch.equal(plain, decoded)
    assert videos[0] == videos[1] != videos[2]
    assert 1e-3 < (quantized - plain).norm() / plain.norm() < 0.03


@pytest.mark.parametrize("model", ["nano-mid", "nano-base"])
def test_every_variant_is_built_in(model: str, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    steps = ["--num-inference-steps", "2"] if model == "nano-base" else ["--steps", "2,1,1"]
    arguments = ["generate", "a dog", "--model", model, "--size", "64x64", *steps]
    assert main([*arguments, "--num-frames", "33", "--output", str(path)]) == 0
    assert count_frames(path) == 33


@pytest.mark.usefixtures("quick")
def test_a_video_goes_on_from_an_image_and_from_a_video(tmp_path: Path) -> None:
    first, image, path = (tmp_path / name for name in ("first.mp4", "image.png", "video.mp4"))
    latents = tmp_path / "latents.safetensors"
    assert generate("--num-frames", 40, "--output", first) == 0
    Image.new("RGB", (200, 100), (200, 30, 30)).save(image)
    for reference, frames in ((["--image", image], 1), (["--video", first], 9)):
        extra = ["--num-frames", 33, "--output", path, "--output-latents", latents]
        assert generate(*reference, *extra) == 0
        assert count_frames(path) == 33
        assert load_file(latents)["latents"].shape == (1, 16, frames + 9, 8, 8)


@pytest.mark.slow
def test_a_killed_run_leaves_its_finished_chunks(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    command = [sys.executable, "-m", "helios_serve", "generate", "a dog runs"]
    run = subprocess.Popen([*command, *FAST, "--num-frames", "6600", "--output", str(path)])
    try:
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 0):
            assert run.poll() is None, "the run ended by itself"
            assert time.monotonic() < deadline, "no chunk came"
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
    finally:
        run.kill()
        run.wait()
    frames = count_frames(path)
    assert frames >= 33
    assert frames % 33 == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "100x64"], "got size 100x64, expected .* such as 64x64 or 128x64"),
        (["--steps", "2,2"], "got 2 step counts"),
        (["--num-frames", "0"], "got num_frames 0"),
        (["--image", "a", "--video", "b"], "both an image and a video"),
        (["--image", "nothing.png"], "nothing.png: got no such file"),
        (["--model", "no/such/model"], "got model 'no/such/model'"),
        (["--device", "tpu"], "got device 'tpu'"),
        (["--lora", "nothing"], "got LoRA 'nothing'"),
        (["--output", "no/such/folder/x.mp4"], "got --output no/such/folder/x.mp4"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_file(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "a dog", *arguments]) == 2
    (line,) = without_progress(capsys.readouterr().err)
    assert line.startswith("helios-serve: error: ")
    assert re.search(message, line)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["image", "video"])
def test_whatever_a_decoder_raises_is_one_line(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("a tag that is not there")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    monkeypatch.setattr("helios_serve.media.video_file.deinterlaced", fail)
    picture, movie = tmp_path / "a.png", tmp_path / "a.mp4"
    Image.new("RGB", (64, 64)).save(picture)
    movie.write_bytes(video(counted()))
    path = picture if kind == "image" else movie
    assert generate(f"--{kind}", path, "--output", tmp_path / "out.mp4") == 2
    (line,) = without_progress(capsys.readouterr().err)
    assert line.startswith(f"helios-serve: error: {path}: got KeyError while decoding, expected ")
    assert not (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--size", "64"],
        ["--steps", "two"],
        ["--dtype", "int4"],
        ["--seconds", "0"],
        ["--prompt-at", "soon"],
        ["--image-noise-sigma", "1"],
        ["--seconds", "1", "--num-frames", "24"],
    ],
)
def test_bad_flags_are_refused_by_name(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["generate", "a dog", *arguments])
    assert f"argument {arguments[-2]}: " in capsys.readouterr().err


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, helios_serve.entrypoints.cli.main; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("quick")
def test_the_python_api_streams_and_generates_the_same_video(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "width": 64,
        "height": 64,
        "num_frames": 50,
        "steps": (1, 1, 1),
        "switches": (PromptSwitch(1, "a cat"),),
    }
    helios = Helios("nano", device="cpu")
    done: list[tuple[int, int]] = []
    on_step = lambda step: done.append((step.done, step.total))  # noqa: E731
    chunks = list(helios.stream("a dog", on_step=on_step, **options))
    video = helios.generate("a dog", **options)
    assert [len(chunk.frames) for chunk in chunks] == [33, 17]
    assert done == [(step, 6) for step in range(1, 7)]
    assert (np.concatenate([chunk.frames for chunk in chunks]) == video.frames).all()
    assert not (video.frames[0] == video.frames[-1]).all()
    video.save(tmp_path / "video.mp4")
    assert count_frames(tmp_path / "video.mp4") == 50
    video.save_latents(tmp_path / "latents.safetensors")
    assert load_file(tmp_path / "latents.safetensors")["latents"].shape == (1, 16, 18, 8, 8)


def test_the_python_api_refuses_what_it_does_not_know() -> None:
    helios = Helios("nano", device="cpu")
    with pytest.raises(TypeError, match="got unknown option 'heigth', expected one of: .*width"):
        helios.stream("a dog", heigth=64)
    with pytest.raises(InvalidRequestError, match="got width '64': expected `int`, got `str`"):
        helios.stream("a dog", width="64")


def test_default_sizes() -> None:
    assert default_size("nano-mid") == default_size("nano-random") == (64, 64)
    assert default_size("BestWishYsh/Helios-Base") == (640, 384)

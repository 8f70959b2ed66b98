"""HeliosBench: names and counts, ratings and totals, and measures of videos whose values are
known.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from helios_serve.benchmarks.quality import official
from helios_serve.benchmarks.quality.cases import BenchCase, BenchVideo, find_videos, read_cases
from helios_serve.benchmarks.quality.frames import frames_of, official_frames, shorten
from helios_serve.benchmarks.quality.making import BenchRun, Made, begin_run, make_videos
from helios_serve.benchmarks.quality.optical_flow import motion_amplitude
from helios_serve.benchmarks.quality.scoring import VideoScore, measure_video, score_folder
from helios_serve.benchmarks.targets.target import SessionFailedError, UnreachableError
from helios_serve.entrypoints.cli.main import main
from helios_serve.errors import HeliosError, InvalidRequestError
from tests.support.server import running_server

CSV = "id,prompt,duration\n1,a calm sea,120\n2,a dog runs,240\n3,rain,720\n4,snow,1440\n"
Frames = NDArray[np.uint8]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text(CSV)
    return path


@pytest.fixture(scope="module")
def texture() -> Frames:
    """A smooth pattern of 128x192 pixels, on which optical flow finds its way."""
    noise = np.random.default_rng(0).uniform(0, 255, (128, 192, 3))
    for axis in (0, 1):
        noise = np.mean([np.roll(noise, shift, axis) for shift in range(-4, 5)], axis=0)
    low, high = noise.min(), noise.max()
    scaled: Frames = ((noise - low) / (high - low) * 200 + 25).astype(np.uint8)
    return scaled


def write_video(path: Path, frames: Iterator[Frames] | list[Frames], rate: int = 24) -> Path:
    """Write a video without loss of brightness."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"qp": "0"})
        for index, frame in enumerate(frames):
            if not index:
                stream.height, stream.width, stream.pix_fmt = *frame.shape[:2], "yuv444p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def measured(folder: Path, frames: list[Frames]) -> dict[str, float | None]:
    return measure_video(write_video(folder / "video.mp4", frames)).measures


def test_the_official_counts_of_frames(prompts: Path) -> None:
    cases = read_cases(prompts)
    assert [case.num_frames for case in cases] == [129, 261, 725, 1449]
    assert cases[1].video_name(261) == "2_240_ori261.mp4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,id\n", "line 1: got columns"),
        ("id,prompt,duration\nx,a,120\n", "line 2: got id 'x', expected a whole number"),
        ("id,prompt,duration\n1,a,long\n", "line 2: got duration 'long'"),
        ("id,prompt,duration\n1,a\n", "line 2: got duration None"),
        ("id,prompt,duration\n1,,120\n", "line 2: got no prompt"),
        ("id,prompt,duration\n1,a,120\n1,b,120\n", "line 3: got id 1 again"),
    ],
)
def test_invalid_prompts_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(InvalidRequestError, match=message):
        read_cases(tmp_path / "p.csv")


def test_videos_are_found_by_id(tmp_path: Path, prompts: Path) -> None:
    for name in ("10_120_ori129.mp4", "2_240_ori261.mp4", "1_120_ori129.mp4", "1_120_final.mp4"):
        (tmp_path / name).touch()
    cases = read_cases(prompts)
    found = find_videos(tmp_path, cases)
    assert [(video.case.id, video.frames) for video in found] == [(1, 129), (2, 261)]
    (tmp_path / "2_240_ori81.mp4").touch()
    with pytest.raises(InvalidRequestError, match=r"2_240_ori261.mp4 and 2_240_ori81.mp4"):
        find_videos(tmp_path, cases)


@pytest.mark.parametrize(
    ("shift", "amplitude"),
    [
        (lambda index: 2 * index, 1.0),  # a pan: the mean of both components is 1
        (lambda index: 2 * (index % 2), 0.0),  # to and fro: signs cancel out
        (lambda _: 0, 0.0),
    ],
)
def test_motion_amplitude_of_a_pan_and_of_a_shake(
    texture: Frames, shift: Callable[[int], int], amplitude: float
) -> None:
    frames = [np.roll(texture, shift(index), axis=1) for index in range(9)]
    assert motion_amplitude(np.stack(frames)) == pytest.approx(amplitude, abs=0.2)


def test_measures_of_a_pan_over_three_chunks(tmp_path: Path, texture: Frames) -> None:
    found = measured(tmp_path, [np.roll(texture, index, axis=1) for index in range(99)])
    assert found["mean_flow_magnitude"] == pytest.approx(1.0, abs=0.15)
    assert found["flow_smoothness"] == pytest.approx(1.0, abs=0.05)
    assert found["chunk_seam"] == pytest.approx(1.0, abs=0.05)
    assert found["drift_luma"] == pytest.approx(0.0, abs=0.2)
    assert found["repetition"] is not None
    assert found["repetition"] < 0.9


def test_drift_of_a_video_that_turns_brighter_and_grey(tmp_path: Path) -> None:
    """14 frames at either end, from a dark red to a bright grey."""
    ends = [np.full((64, 64, 3), colour, np.uint8) for colour in ((120, 20, 20), (180, 180, 180))]
    found = measured(tmp_path, [ends[0]] * 50 + [ends[1]] * 50)
    assert found["drift_luma"] == pytest.approx(180 - 49.9, abs=2)
    assert found["drift_saturation"] == pytest.approx(100, abs=3)
    # L*a*b* of the colours: (25.1, 42.9, 28.1) and (73.4, 0, 0).
    assert found["drift_colour"] == pytest.approx(70.4, abs=2)
    assert found["drift_sharpness"] == pytest.approx(0.0, abs=0.5)
    assert found["flicker"] == pytest.approx(1 - (60 + 160 + 160) / 3 / 255 / 99, abs=1e-3)


def test_drift_of_sharpness(tmp_path: Path, texture: Frames) -> None:
    flat = np.full_like(texture, 128)
    found = measured(tmp_path, [texture] * 20 + [flat] * 20)
    assert found["drift_sharpness"] is not None
    assert found["drift_sharpness"] > 1


def test_a_seam_that_jumps_is_seen(tmp_path: Path, texture: Frames) -> None:
    """One pixel a frame inside chunks, and three more at their edges."""
    frames = [np.roll(texture, index + 3 * (index // 33), axis=1) for index in range(99)]
    step = [np.abs(np.roll(texture, by, axis=1).astype(int) - texture).mean() for by in (1, 4)]
    assert measured(tmp_path, frames)["chunk_seam"] == pytest.approx(step[1] / step[0], rel=0.05)


def test_a_loop_repeats(tmp_path: Path, texture: Frames) -> None:
    """A pan round a pattern of 192 pixels with 4 a frame comes back after 48 frames: 2 s."""
    frames = [np.roll(texture, 4 * index, axis=1) for index in range(120)]
    assert measured(tmp_path, frames)["repetition"] == pytest.approx(1.0, abs=0.01)


def test_a_still_has_no_seam_and_no_repetition(tmp_path: Path, texture: Frames) -> None:
    found = measured(tmp_path, [texture] * 70)
    assert found["flicker"] == 1.0
    assert found["chunk_seam"] is None
    assert found["repetition"] is None


def test_shortening_changes_no_pixel(tmp_path: Path, texture: Frames) -> None:
    frames = [np.roll(texture, index, axis=1) for index in range(90)]
    source = write_video(tmp_path / "long.mp4", frames)
    assert shorten(source, tmp_path / "short.mp4") == 81
    pairs = list(zip(frames_of(source), frames_of(tmp_path / "short.mp4"), strict=False))
    assert len(pairs) == 81
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_official_frames_have_the_official_size(tmp_path: Path, texture: Frames) -> None:
    path = write_video(tmp_path / "a.mp4", [texture] * 3)
    assert official_frames(path).shape == (3, 426, 640, 3)
    (tmp_path / "b.mp4").write_bytes(b"not a video")
    with pytest.raises(InvalidRequestError, match=r"b.mp4: cannot be decoded"):
        official_frames(tmp_path / "b.mp4")


def test_scores_are_kept_until_a_file_changes(tmp_path: Path, texture: Frames) -> None:
    case = BenchCase(1, "p", 120)
    path = write_video(tmp_path / "1_120_ori5.mp4", [texture] * 5)
    videos, results = [BenchVideo(case, path, 5)], tmp_path / "results"

    def score() -> VideoScore:
        run = score_folder(videos, results, random_weights=False, on_score=lambda _: None)
        return run.videos[0]

    first = score()
    file = results / "helios_results.json"
    content = json.loads(file.read_text())
    content["videos"][0]["motion_fb"] = 7.0  # would be measured anew if it were not kept
    file.write_text(json.dumps(content))
    assert score().motion_fb == 7.0
    write_video(path, [np.roll(texture, index, axis=0) for index in range(5)])
    assert score().motion_fb not in (7.0, first.motion_fb)
    assert content["averages"]["120"]["videos"] == 1


def test_random_weights_get_no_rating(tmp_path: Path, texture: Frames) -> None:
    path = write_video(tmp_path / "1_120_ori5.mp4", [texture] * 5)
    video = BenchVideo(BenchCase(1, "p", 120), path, 5)
    score_folder([video], tmp_path / "r", random_weights=True, on_score=lambda _: None)
    content = json.loads((tmp_path / "r/helios_results.json").read_text())
    assert content["label"] == "machinery only: random weights"
    assert not (tmp_path / "r/motion_amplitude_results.json").exists()


def write_results(folder: Path, scores: dict[str, float | None]) -> Path:
    folder.mkdir()
    for name, value in scores.items():
        average = "average_drift_score" if name.startswith("drifting_") else "average_score"
        (folder / f"{name}_results.json").write_text(json.dumps({average: value, "num_videos": 2}))
    return folder


TOY: dict[str, float | None] = {
    "aesthetic": 0.6564, "motion_amplitude": 0.129, "motion_smoothness": 0.9922,
    "semantic": 0.2818, "naturalness": 0.5, "drifting_aesthetic": 0.025,
    "drifting_motion_smoothness": 0.001, "drifting_semantic": 0.005, "drifting_naturalness": 0.01,
}  # fmt: skip


def test_ratings_and_total_of_the_published_example(tmp_path: Path) -> None:
    """The official repository publishes these ratings and this total for two videos."""
    merged = official.merge_model(write_results(tmp_path / "toy", TOY), "long")
    ratings = official.merge_models({"toy": merged})["models"]["toy"]
    assert ratings == {
        "aesthetic": 9, "motion_amplitude": 3, "motion_smoothness": 10, "semantic": 8,
        "naturalness": 7, "drifting_aesthetic": 8, "drifting_motion_smoothness": 10,
        "drifting_semantic": 10, "drifting_naturalness": 10, "total_weighted_rating": 8.247,
    }  # fmt: skip


def test_a_total_needs_all_metrics(tmp_path: Path) -> None:
    folder = write_results(tmp_path / "toy", TOY | {"motion_amplitude": 0.0})
    (folder / "naturalness_results.json").unlink()
    summary = official.merge_model(folder, "long")["summary"]
    assert summary["total_weighted_rating"] is None
    assert summary["missing_metrics"] == ["motion_amplitude", "naturalness"]
    summary = official.merge_model(write_results(tmp_path / "b", TOY), "short")["summary"]
    # 9 x .1 + 3 x .1 + 10 x .1 + 8 x .35 + 7 x .35
    assert summary["total_weighted_rating"] == pytest.approx(7.45)
    assert not summary["drifting"]


@pytest.mark.parametrize(
    ("value", "track", "rating"), [(0.36, "long", 1), (0.40, "long", 4), (0.36, "short", 3)]
)
def test_the_long_track_cannot_rate_3_or_2(
    value: float, track: official.Track, rating: int
) -> None:
    assert official.METRICS["aesthetic"].rating(value, track, "aesthetic") == rating


@pytest.mark.parametrize(("rate", "score"), [(1, 1), (3.2, 1), (3.3, 2), (19.53, 7), (90, 10)])
def test_throughput_score(rate: float, score: int) -> None:
    assert official.throughput_score(rate) == score


def test_merge_prints_ratings_and_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_results(tmp_path / "whole", TOY)
    part = write_results(tmp_path / "part", {"semantic": 0.28})
    assert main(["bench", "heliosbench", "merge", str(whole), f"{part}/"]) == 0
    said = capsys.readouterr().out
    assert "whole: total 8.247" in said
    assert "part: total none, missing aesthetic, motion_amplitude" in said
    content = json.loads((tmp_path / "all_models_merged.json").read_text())
    assert content["models"]["part"] == {"semantic": 8, "total_weighted_rating": None}


SCRIPT = """
import argparse, json, pathlib
parser = argparse.ArgumentParser()
for name in ("--input_csv", "--video_dir", "--output_path"):
    parser.add_argument(name, type=pathlib.Path)
found = parser.parse_args()
folder = found.output_path / found.video_dir.name
(folder / "semantic_results.json").write_text(json.dumps({"average_score": 0.25}))
"""


def test_score_runs_official_scripts_where_their_weights_are(
    tmp_path: Path, prompts: Path, texture: Frames, capsys: pytest.CaptureFixture[str]
) -> None:
    videos, scripts = tmp_path / "mine", tmp_path / "eval"
    videos.mkdir()
    write_video(videos / "2_240_ori4.mp4", [texture] * 4)
    weights = scripts / "checkpoints/ViCLIP"
    weights.mkdir(parents=True)
    (scripts / "3_get_semantic.py").write_text(SCRIPT)
    (weights / "ViClip-InternVid-10M-FLT.pth").touch()
    command = ["bench", "heliosbench", "score", "--prompts", str(prompts), "--videos", str(videos)]
    command += ["--results", str(tmp_path / "results"), "--official-scripts", str(scripts)]
    command += ["--metrics", "semantic"]
    assert main(command) == 2
    assert "without checkpoints/ViCLIP/bpe_simple_vocab_16e6.txt.gz" in capsys.readouterr().err
    (weights / "bpe_simple_vocab_16e6.txt.gz").touch()
    assert main(command) == 0
    merged = official.merge_model(tmp_path / "results/mine", "long")["summary"]
    assert merged["non_drifting"]["semantic"]["rating"] == 5
    assert merged["non_drifting"]["motion_amplitude"]["rating"] == 1
    (scripts / "3_get_semantic.py").write_text("raise SystemExit(3)")
    assert main(command) == 2
    assert "3_get_semantic.py ended with status 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "--metrics", "semantic"), "got --metrics without --official-scripts"),
        (("score",), "without videos, expected files such as"),
        (("generate", "--ids", "9"), "got id 9, expected ids of the CSV"),
        (("merge",), "got nowhere, expected a folder of results"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path,
    prompts: Path,
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    action, *others = arguments
    given = ["--prompts", str(prompts), "--videos", str(tmp_path / "mine"), *others]
    given = ["nowhere"] if action == "merge" else given
    assert main(["bench", "heliosbench", action, *given]) == 2
    assert message in capsys.readouterr().err


def made_by(
    cases: list[BenchCase], folder: Path, make: Callable[[BenchCase, Path], None]
) -> tuple[Made, dict[int, str | None]]:
    """Make videos with a function, three at a time; also return what was reported."""
    ends: dict[int, str | None] = {}

    async def maker(case: BenchCase, target: Path) -> None:
        await asyncio.sleep(0)
        make(case, target)

    def note(case: BenchCase, reason: str | None) -> None:
        ends[case.id] = reason

    return asyncio.run(make_videos(cases, folder, maker, at_once=3, on_end=note)), ends


def test_a_video_that_fails_ends_only_itself_and_is_made_by_the_next_run(
    tmp_path: Path, texture: Frames
) -> None:
    cases = [BenchCase(number, "p", 120) for number in range(1, 6)]
    broken = {2: SessionFailedError("internal_error", "decoding failed")}

    def make(case: BenchCase, target: Path) -> None:
        if case.id in broken:
            raise broken[case.id]
        if case.id == 4 and broken:
            target.write_bytes(b"not a video")
        else:
            write_video(target, [texture] * 3)

    made, ends = made_by(cases, tmp_path, make)
    assert [case.id for case in made.made] == [1, 3, 5]
    assert made.failed.keys() == {2, 4}
    assert "decoding failed" in made.failed[2]
    assert "not a video" in made.failed[4]
    assert ends == {1: None, 3: None, 5: None} | made.failed
    broken.clear()
    again, _ = made_by(cases, tmp_path, make)
    assert [case.id for case in again.made] == [2, 4]
    assert [case.id for case in again.kept] == [1, 3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{number}_120_ori3.mp4" for number in range(1, 6)
    ]


def test_a_server_that_is_lost_ends_the_run(tmp_path: Path) -> None:
    def make(case: BenchCase, target: Path) -> None:  # noqa: ARG001
        raise UnreachableError("cannot connect")

    with pytest.raises(HeliosError, match="the server is lost: cannot connect"):
        made_by([BenchCase(1, "p", 120)], tmp_path, make)


def test_a_folder_holds_videos_that_were_made_in_one_way(tmp_path: Path) -> None:
    run = BenchRun(model="nano", width=64, height=64, seed=0, random_weights=True, version="0.1.0")
    begin_run(tmp_path / "a", run)
    begin_run(tmp_path / "a", run)
    with pytest.raises(InvalidRequestError, match=r"made with model nano, 64x64, seed 0"):
        begin_run(tmp_path / "a", msgspec.structs.replace(run, seed=1))


@pytest.mark.slow
def test_generate_score_and_merge_with_a_server_and_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All commands of a user. Both ways make the same videos from the same seed."""
    prompts = tmp_path / "p.csv"
    prompts.write_text("id,prompt,duration\n1,a calm sea,33\n2,a dog runs,40\n")
    given = ("--prompts", str(prompts), "--width", "64", "--height", "64", "--seed", "3")
    command = ["bench", "heliosbench", "generate", *given]
    with running_server(tmp_path / "data", "nano-random", "--device", "cpu") as server:
        base = server.url
        assert main([*command, "--videos", str(tmp_path / "served"), "--base-url", base]) == 0
        assert main([*command, "--videos", str(tmp_path / "served"), "--base-url", base]) == 0
    _, _, second = capsys.readouterr().out.partition("2 made, 0 kept, 0 failed")
    assert " frames/s, all videos together: throughput score " in second
    assert second.endswith("0 made, 2 kept, 0 failed\n")
    assert main([*command, "--videos", str(tmp_path / "own"), "--offline", "nano-random"]) == 0
    for name in ("1_33_ori33.mp4", "2_40_ori65.mp4"):
        both = [frames_of(tmp_path / folder / name) for folder in ("served", "own")]
        assert all(np.array_equal(one, other) for one, other in zip(*both, strict=True))
    for folder in ("served", "own"):
        found = ["--prompts", str(prompts), "--videos", str(tmp_path / folder)]
        found += ["--results", str(tmp_path / "results")]
        assert main(["bench", "heliosbench", "score", *found]) == 0
    assert "no ratings: with random weights" in capsys.readouterr().out
    one, other = (
        json.loads((tmp_path / "results" / folder / "helios_results.json").read_text())["averages"]
        for folder in ("served", "own")
    )
    assert one == other
    assert main(["bench", "heliosbench", "merge", str(tmp_path / "results/own")]) == 0
    assert "own: total none, missing aesthetic" in capsys.readouterr().out

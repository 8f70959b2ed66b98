"""Plans of machines: what is parsed, refused, counted and printed."""

import json
import re
from pathlib import Path

import pytest

from helios_serve.core.gpus import GPUS
from helios_serve.engine import sizing
from helios_serve.engine.sizing import GpuSet, Setup
from helios_serve.entrypoints.cli.main import main
from helios_serve.errors import InvalidRequestError, StorageError
from helios_serve.options.sampling import SamplingParams

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "sizing.md"
BLOCK = re.compile(r"    \$ (helios-serve plan .*)\n((?:    (?!\$).*\n|\n(?=    (?!\$)))*)")


@pytest.fixture(scope="module")
def nano() -> Setup:
    return sizing.make_setup("nano", SamplingParams(width=64, height=64, steps=(1, 1, 1)))


def test_gpus_are_a_number_and_a_name() -> None:
    assert sizing.parse_gpus("8xH100") == GpuSet(8, GPUS["h100"])
    for text in ("8", "h100", "0xh100", "8xv100", "8 x h100"):
        with pytest.raises(InvalidRequestError, match=f"got GPUs '{text}', expected COUNTxNAME"):
            sizing.parse_gpus(text)


def test_work_follows_steps_and_guidance(nano: Setup) -> None:
    work = sizing.chunk_work(nano)
    params = SamplingParams(width=64, height=64, steps=(2, 2, 2))
    twice = sizing.chunk_work(sizing.make_setup("nano", params))
    assert twice.denoise == work.denoise.times(2)
    assert (twice.decode, twice.exchanged) == (work.decode, 2 * work.exchanged)
    guided, alone = (
        sizing.make_setup(
            "nano-mid", SamplingParams(width=64, height=64, steps=(1, 1, 1), guidance_scale=scale)
        )
        for scale in (5.0, 1.0)
    )
    assert sizing.chunk_work(guided).denoise == sizing.chunk_work(alone).denoise.times(2)


def test_a_plan_names_what_is_counted_and_what_is_predicted(nano: Setup) -> None:
    head, source, blank, titles, *rows = sizing.describe_plan(GpuSet(2, GPUS["h100"]), nano)
    assert head.startswith("2 x H100 80GB SXM: nano, 64x64, steps 1,1,1, bfloat16")
    assert source == (
        "Rates are predicted from counted work and published rates; none was measured."
    )
    assert (blank, titles.split()[0]) == ("", "LAYOUT")
    assert [row.split("  ")[0] for row in rows] == [
        "data parallel",
        "decode on 1 of 2",
        "context parallel 2",
    ]
    for row in rows:
        numbers = re.findall(r"\d+\.\d (?:GB )?(\w+)", row)
        assert numbers == ["counted", "predicted", "predicted", "predicted"], row


def test_what_does_not_fit_has_no_rate(nano: Setup) -> None:
    small = GpuSet(1, GPUS["h100"]._replace(memory_gb=1e-3))
    row = list(sizing.describe_plan(small, nano))[-1]
    assert "GB counted, too much" in row
    assert "predicted" not in row


def test_fp8_is_refused_where_there_is_none(nano: Setup) -> None:
    with pytest.raises(InvalidRequestError, match="got quantization fp8 with A100 80GB SXM"):
        sizing.rows(GpuSet(1, GPUS["a100"]), nano._replace(quantization="fp8"))


def test_measured_rates_take_the_place_of_published_ones(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    stages = [{"attention_tflops": {"cudnn, 9 x 9": 500.0, "varlen, 9 x 9": 370.0}}]
    found = {
        "hardware": "NVIDIA H100",
        "matmul_tflops": 700.0,
        "copy_gb_per_second": 2900.0,
        "stages": stages,
    }
    path.write_text(json.dumps(found))
    machine = sizing.with_measured_rates(GpuSet(8, GPUS["h100"]), path)
    assert machine.source == "rates measured on NVIDIA H100"
    assert machine.gpu[2:5] == (700e12, 500e12, 2900e9)
    path.write_text("[]")
    with pytest.raises(InvalidRequestError, match="expected a file that benchmarks/micro/rates"):
        sizing.with_measured_rates(GpuSet(8, GPUS["h100"]), path)
    with pytest.raises(StorageError, match="cannot read"):
        sizing.with_measured_rates(GpuSet(8, GPUS["h100"]), tmp_path / "none.json")


def test_the_command_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--model", "nano", "--size", "64x64", "--steps", "1,1,1", "--gpus", "2xh200"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("2 x H200 141GB SXM: nano, 64x64, steps 1,1,1")
    assert main([*words[:-1], "2xh20"]) == 2
    assert "got GPUs '2xh20'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_shows_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """After a change, run its commands again and paste what they print."""
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 2
    for command, shown in blocks:
        assert main(command.split()[1:]) == 0
        printed = capsys.readouterr().out
        assert [line[4:] for line in shown.rstrip().splitlines()] == printed.rstrip().splitlines()

"""Options are declared once, and reach every place where users give them."""

from pathlib import Path

import msgspec

from helios_serve.entrypoints.cli.options_document import document
from helios_serve.options.fields import options_of
from helios_serve.options.sampling import SamplingOptions, SamplingParams
from helios_serve.options.scheduling import BatchLimits
from helios_serve.options.workers import WorkerConfig, WorkerOptions
from helios_serve.service.batches.batch_line import LocalVideo
from helios_serve.service.protocol import CreateVideo

ROOT = Path(__file__).parents[2]


def test_the_page_of_options_is_up_to_date() -> None:
    """`make docs` writes it."""
    assert (ROOT / "docs" / "options.md").read_text() == document()


def test_bodies_and_lines_take_every_sampling_option_alike() -> None:
    expected = options_of(SamplingOptions)
    for kind in (SamplingParams, CreateVideo, LocalVideo):
        found = options_of(kind)
        assert {name: found[name] for name in expected} == expected


def test_workers_take_every_worker_option() -> None:
    assert options_of(WorkerOptions).items() <= options_of(WorkerConfig).items()


def test_every_option_is_described() -> None:
    kinds: tuple[type[msgspec.Struct], ...] = (CreateVideo, WorkerOptions, BatchLimits)
    for kind in kinds:
        assert all(option.description for option in options_of(kind).values()), kind

"""Fixtures of the benchmarks' tests."""

import pytest

from helios_serve.benchmarks.measure import result


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine delays these tests, which is not what they are about."""
    monkeypatch.setattr(result, "MAX_LAG", 60.0)

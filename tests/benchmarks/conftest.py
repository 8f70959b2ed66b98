"""Fixtures of the benchmarks' tests."""

import pytest

from helios_serve.benchmarks.measure import result


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allow long delays: a busy machine delays these tests, which do not test speed."""
    monkeypatch.setattr(result, "MAX_LAG", 60.0)

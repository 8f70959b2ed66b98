"""Batch lines: which errors end a line, and which are retried."""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helios_serve.errors import (
    CheckpointError,
    EngineDeadError,
    HeliosError,
    InvalidRequestError,
    StorageError,
)
from helios_serve.service.batches import batch_runner
from helios_serve.service.batches.batch_runner import BatchRunner, is_temporary
from helios_serve.service.errors import ApiError
from helios_serve.store.batches import StoredBatch
from helios_serve.store.service_tables import ServiceTables

TEMPORARY = (StorageError("full"), EngineDeadError("dead"), HeliosError("busy"), sqlite3.Error())
PERMANENT = (
    InvalidRequestError("got size 1", param="size"),
    ApiError(404, "got lora 'x'", code="lora_not_found"),
    CheckpointError("damaged"),
    KeyError("x"),
    RecursionError("x"),
    MemoryError(),
)


class Builder:
    """Raises the errors of a line in turn: those of line `n` are each `lines`th one from `n` on."""

    def __init__(self, errors: tuple[Exception, ...], lines: int) -> None:
        self.errors = [list(errors[line::lines]) for line in range(lines)]

    async def make(self, fields: dict[str, Any], *_: Any) -> None:
        raise self.errors[fields["seed"]].pop(0)


async def errors_of(folder: Path, *errors: Exception, lines: int) -> list[dict[str, Any]]:
    """Return the results in the error file of a batch whose lines raise these errors."""
    with closing(ServiceTables(folder)) as tables:
        names = [
            json.dumps({"custom_id": str(index), "body": {"seed": index}}) for index in range(lines)
        ]
        tables.files.scratch("file-in").write_text("\n".join(names))
        tables.files.add("file-in", "me", "lines.jsonl", "batch")
        batch = StoredBatch(
            id="batch_1",
            tenant="me",
            input_file_id="file-in",
            endpoint="/v1/videos",
            completion_window="24h",
            created_at=time.time(),
            expires_at=time.time() + 60,
        )
        tables.batches.add(batch)
        tenant = SimpleNamespace(tier_like=lambda tier: tier)
        models = SimpleNamespace(tenant=lambda _: tenant)
        videos: Any = SimpleNamespace(
            store=SimpleNamespace(job=lambda _: None), engine=SimpleNamespace(models=models)
        )
        builder: Any = Builder(errors, lines)
        async with BatchRunner(videos, builder, tables):
            async with asyncio.timeout(20):
                while (done := tables.batches.get("batch_1")) is None or done.status != "completed":
                    await asyncio.sleep(0.01)
        assert done.error_file_id is not None
        text = tables.files.path(done.error_file_id).read_text()
        return [json.loads(item) for item in text.splitlines()]


def test_whatever_a_line_raises_is_its_result(tmp_path: Path) -> None:
    results = asyncio.run(errors_of(tmp_path, *PERMANENT, lines=len(PERMANENT)))
    assert [item["custom_id"] for item in results] == [str(at) for at in range(len(PERMANENT))]
    assert [item["response"]["status_code"] for item in results] == [400, 404, 400, 500, 500, 500]
    messages = [item["error"]["message"] for item in results]
    assert messages[:3] == ["got size 1", "got lora 'x'", "damaged"]
    assert set(messages[3:]) == {"internal error"}


@pytest.mark.parametrize(
    "error", [*TEMPORARY, OSError("disk")], ids=lambda error: type(error).__name__
)
def test_a_fault_of_the_server_is_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runner, "RETRY_SECONDS", 0.01)
    results = asyncio.run(errors_of(tmp_path, error, error, KeyError("x"), lines=1))
    assert [item["error"]["code"] for item in results] == ["internal_error"]


def test_which_errors_are_temporary() -> None:
    assert all(map(is_temporary, TEMPORARY))
    assert not any(map(is_temporary, PERMANENT))

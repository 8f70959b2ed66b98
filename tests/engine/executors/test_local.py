"""Workers as child processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from helios_serve.errors import HeliosError
from helios_serve.model_executor.executor import local
from helios_serve.model_executor.executor.local import LocalExecutor
from tests.support.service import Service, worker_config


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    started = LocalExecutor()
    yield started
    started.shutdown()


def test_worker_processes_give_the_latents_of_this_one(
    executor: LocalExecutor, folder: Path, expected: dict[str, Tensor]
) -> None:
    service = Service(executor, folder, [worker_config(folder)] * 2)
    service.add("i2v", "v2v")
    service.run()
    service.check(expected)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_loaded_is_told_by_its_reason(
    executor: LocalExecutor, folder: Path
) -> None:
    service = Service(executor, folder, [worker_config(Path("nano-max"))])
    with pytest.raises(HeliosError, match="no worker can be started to encode: got model 'nano-m"):
        service.wait(lambda: False)


def test_a_worker_that_is_still_loading_is_not_waited_for(
    executor: LocalExecutor, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STOP_SECONDS", 3600.0)
    pid = executor.pid(executor.start_worker(worker_config(folder)))
    os.kill(pid, signal.SIGSTOP)  # it would take for ever
    executor.shutdown()
    assert not Path(f"/proc/{pid}").exists()

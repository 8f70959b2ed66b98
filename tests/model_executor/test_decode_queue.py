"""The order in which chunks are decoded."""

import threading

from helios_serve.messages import DecodeTask, Latents
from helios_serve.model_executor.worker.decode_queue import DecodeQueue

NOTHING = Latents(b"", (), "float32")


def put(queue: DecodeQueue, *chunks: str) -> None:
    """`a0` is chunk 0 of session a."""
    for name in chunks:
        queue.put(DecodeTask(name[0], int(name[1:]), NOTHING))


def drain(queue: DecodeQueue) -> list[str]:
    queue.close()
    return [f"{task.session_id}{task.chunk}" for task in iter(queue.get, None)]


def test_sessions_take_turns_and_keep_their_order() -> None:
    queue = DecodeQueue()
    put(queue, "a0", "a1", "a2", "b0", "b1", "a3")
    assert drain(queue) == ["b0", "a0", "b1", "a1", "a2", "a3"]


def test_a_first_chunk_goes_first_and_later_ones_wait_their_turn() -> None:
    queue = DecodeQueue()
    put(queue, "a0", "a1", "a2")
    assert queue.get() == DecodeTask("a", 0, NOTHING)
    put(queue, "b0", "a3", "c7")
    assert drain(queue) == ["b0", "a1", "c7", "a2", "a3"]


def test_get_waits_for_a_task() -> None:
    queue = DecodeQueue()
    got: list[DecodeTask | None] = []
    reader = threading.Thread(target=lambda: got.append(queue.get()))
    reader.start()
    put(queue, "a0")
    reader.join(10)
    assert got == [DecodeTask("a", 0, NOTHING)]

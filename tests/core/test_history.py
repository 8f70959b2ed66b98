"""Block tables: what a session holds, what it shares and what it gives back."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helios_serve.core.history_manager import BlockPool, HistoryManager
from helios_serve.messages import NULL_BLOCK
from helios_serve.model_config import CHUNK_LATENTS, HISTORY_FRAMES, WINDOW_FRAMES, Geometry
from tests.support.tries import tries

GEOMETRY = Geometry(64, 128)
SIZE = GEOMETRY.blocks_per_frame


def frames_of(table: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [table[start : start + SIZE] for start in range(0, len(table), SIZE)]


def test_a_new_session_sees_only_null_frames() -> None:
    manager = HistoryManager(200)
    assert manager.open("a", GEOMETRY) == ((), (), False)
    window, append, _ = manager.begin_chunk("a", new_anchor=True)
    assert window == (NULL_BLOCK,) * (WINDOW_FRAMES * SIZE)
    assert len(set(append)) == CHUNK_LATENTS * SIZE
    assert NULL_BLOCK not in append


def test_windows_slide_over_finished_chunks() -> None:
    manager = HistoryManager(200)
    manager.open("a", GEOMETRY)
    made: list[tuple[int, ...]] = []
    for chunk in range(4):
        window, append, _ = manager.begin_chunk("a", new_anchor=chunk == 0)
        anchor, *history = frames_of(window)
        expected = made[-HISTORY_FRAMES:]
        assert history[len(history) - len(expected) :] == expected
        assert anchor == (made[0] if chunk else (NULL_BLOCK,) * SIZE)
        manager.end_chunk("a")
        manager.check_integrity()
        made += frames_of(append)


def test_a_reference_comes_with_an_anchor_and_frames_of_its_own() -> None:
    manager = HistoryManager(200)
    anchor, frames, _ = manager.open("a", GEOMETRY, initial_frames=HISTORY_FRAMES)
    window, _, _ = manager.begin_chunk("a", new_anchor=False)
    assert window == (*anchor, *frames)


def test_a_session_never_holds_more_than_its_peak_and_gives_all_back() -> None:
    manager = HistoryManager(HistoryManager.peak_blocks(GEOMETRY) + 1)
    manager.open("a", GEOMETRY, initial_frames=HISTORY_FRAMES)
    for _ in range(6):
        manager.begin_chunk("a", new_anchor=False)
        manager.end_chunk("a")
    manager.close("a")
    manager.check_integrity()
    assert manager.pool.num_free == manager.peak_blocks(GEOMETRY)


def test_forks_share_the_blocks_of_their_parent_until_they_part() -> None:
    manager = HistoryManager(400)
    manager.open("parent", GEOMETRY, initial_frames=HISTORY_FRAMES)
    used = manager.pool.num_blocks - manager.pool.num_free
    shared = [manager.fork("parent", child) for child in ("b", "c")]
    assert manager.pool.num_blocks - manager.pool.num_free == used
    windows = {
        name: manager.begin_chunk(name, new_anchor=False).window for name in ("parent", "b", "c")
    }
    assert windows["parent"] == windows["b"] == windows["c"]
    assert {(*blocks.window, *blocks.append) for blocks in shared} == {windows["parent"]}
    for name in ("parent", "b", "c"):
        manager.end_chunk(name)
        manager.check_integrity()
    manager.close("parent")
    manager.check_integrity()
    kept = set(manager.begin_chunk("b", new_anchor=False).window)
    assert kept & set(windows["parent"])
    manager.fork("b", "d")  # in the middle of a chunk: from where that began
    assert manager.begin_chunk("d", new_anchor=False).window == manager._histories["b"].window
    manager.check_integrity()


def test_misuse_is_caught() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        BlockPool(1)
    pool = BlockPool(4)
    (frame,) = pool.allocate(1, 3)
    pool.free(frame)
    for misuse in (pool.free, pool.share):
        with pytest.raises(AssertionError):
            misuse(frame)
    with pytest.raises(AssertionError):
        pool.allocate(2, 2)
    lost = pool.allocate(1, 3)
    with pytest.raises(AssertionError, match="counts differ"):
        pool.check_integrity([])
    pool.check_integrity(lost)
    with pytest.raises(AssertionError):
        pool.check_integrity([frame[:2], frame[2:]])


class HistoryMachine(RuleBasedStateMachine):
    """Sessions of several sizes open, make chunks and close in any order."""

    sizes = (Geometry(64, 64), Geometry(64, 128), Geometry(48, 80))

    @initialize()
    def start(self) -> None:
        self.manager = HistoryManager(400)
        self.sessions: dict[str, Geometry] = {}
        self.in_chunk: set[str] = set()
        self.opened = 0

    def pick(self, data: st.DataObject, names: set[str]) -> str:
        return data.draw(st.sampled_from(sorted(names)))

    @rule(size=st.sampled_from(sizes), frames=st.sampled_from([0, 1, 9, 19]))
    def open(self, size: Geometry, frames: int) -> None:
        needed = sum(self.manager.peak_blocks(size) for size in [*self.sessions.values(), size])
        if needed < self.manager.pool.num_blocks:
            name = f"session-{self.opened}"
            self.opened += 1
            self.manager.open(name, size, initial_frames=frames)
            self.sessions[name] = size

    @precondition(lambda self: self.sessions.keys() - self.in_chunk)
    @rule(data=st.data(), new_anchor=st.booleans())
    def begin(self, data: st.DataObject, new_anchor: bool) -> None:
        name = self.pick(data, self.sessions.keys() - self.in_chunk)
        window, append, _ = self.manager.begin_chunk(name, new_anchor=new_anchor)
        assert set(append).isdisjoint(window)
        self.in_chunk.add(name)

    @precondition(lambda self: self.in_chunk)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        name = self.pick(data, self.in_chunk)
        self.manager.end_chunk(name)
        self.in_chunk.remove(name)

    @precondition(lambda self: self.sessions.keys() - self.in_chunk)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        parent = self.pick(data, self.sessions.keys() - self.in_chunk)
        sizes = [*self.sessions.values(), self.sessions[parent]]
        if sum(map(self.manager.peak_blocks, sizes)) < self.manager.pool.num_blocks:
            name = f"session-{self.opened}"
            self.opened += 1
            self.manager.fork(parent, name)
            self.sessions[name] = self.sessions[parent]

    @precondition(lambda self: self.sessions)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        name = self.pick(data, set(self.sessions))
        self.manager.close(name)
        self.in_chunk.discard(name)
        del self.sessions[name]

    @invariant()
    def counts_are_right(self) -> None:
        self.manager.check_integrity()


TestHistoryMachine = HistoryMachine.TestCase
TestHistoryMachine.settings = settings(
    max_examples=tries(40, 1000), stateful_step_count=30, derandomize=True
)

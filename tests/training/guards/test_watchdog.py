"""Who is missed, and which errors only follow from another process's; whole runs are in tests/cli."""

import pytest
import torch.distributed as dist
from clock import Clock
from torch.distributed import TCPStore

from segkit.training.guards.watchdog import _follows, _Watch


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


def test_a_process_without_a_beat_is_missed_and_one_that_is_done_is_not(store: TCPStore) -> None:
    clock = Clock()
    watch = _Watch(store, 0, 3, timeout=20, clock=clock)
    store.set("beat/1", "5"), store.set("beat/2", "done")
    assert watch._look("1") is None
    clock.sleep(20)
    assert watch._look("2") is None
    clock.sleep(1)
    assert watch._look("3") == "rank 1 gave no sign of life for 20 s: it was killed or its machine is lost"
    store.set("beat/1", "6")
    assert watch._look("4") is None


def test_an_error_is_handed_on_once(store: TCPStore) -> None:
    one, two = _Watch(store, 1, 3, timeout=5), _Watch(store, 2, 3, timeout=5)
    assert one.fail(ValueError("a file\nis broken")) is None
    assert two._look("1") == "rank 1 failed: ValueError: a file is broken"
    lost = RuntimeError("[pair.cc:561] Connection closed by peer [127.0.0.1]:36018")
    assert two.fail(lost) == "rank 1 failed: ValueError: a file is broken"


def test_what_only_follows() -> None:
    assert _follows(dist.DistBackendError("NCCL communicator was aborted"))
    assert _follows(RuntimeError("Connection reset by peer"))
    assert not _follows(RuntimeError("shape mismatch")) and not _follows(ValueError("socket"))


@pytest.mark.slow
def test_rank_0_ends_after_those_that_still_work(store: TCPStore) -> None:
    """Its end is the store's, and the others would take it for lost."""
    store.set("beat/1", "1")
    looks = []

    def still_working_at_three_looks() -> float:
        looks.append("done" if len(looks) == 3 else "working")
        store.set("beat/1", looks[-1])
        return 0.0

    _Watch(store, 0, 2, 30, still_working_at_three_looks).finish()
    assert looks == ["working", "working", "working", "done"]


def test_rank_0_does_not_wait_for_a_lost_one(store: TCPStore) -> None:
    clock = Clock()
    store.set("beat/1", "2")

    def a_minute_later() -> float:
        clock.sleep(60)
        return clock()

    _Watch(store, 0, 2, 100, a_minute_later).finish()
    assert clock() > 100


def test_the_others_do_not_wait(store: TCPStore) -> None:
    store.set("beat/0", "1")
    _Watch(store, 1, 2, timeout=30).finish()
    assert store.get("beat/1") == b"done"

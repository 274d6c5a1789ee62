"""The artifact store among processes: races, kill -9, locks of the dead."""

from __future__ import annotations

import pickle
import random
import threading
import time
from pathlib import Path

import pytest

from serve_app.artifacts.store import Store, StoreError, open_store
from tests.unit import artifact_cases as cases
from tests.unit.artifact_cases import FEW, FILES, KEY, MANIFEST, TOTAL, make

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source")


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return make(tmp_path / "few", FEW)


def moments(lines: int) -> list[int]:
    """Lines to die at: half of them among the last, where things become visible."""
    dice = random.Random(7)
    return dice.sample(range(1, lines - 60), 6) + dice.sample(range(lines - 60, lines), 6)


def check_after_kill(store: Store, key: str, few: Path, cache_directory: Path) -> bool:
    """All of the artifact is there (True) or nothing, and then it can be published."""
    found = store.find(key) is not None
    if found:
        assert cases.verify(store, cache_directory, key) == FEW
    assert store.publish(key, few) is not found
    if not found:
        assert cases.verify(store, cache_directory, key) == FEW
    return found


def test_kill_9_at_any_line(url: str, few: Path, tmp_path: Path) -> None:
    counted = tmp_path / "lines"
    cases.finish(cases.start(cases.publish_and_count, url, few, counted))
    at = {f"line-{line}": line for line in moments(int(counted.read_text()))}
    running = [cases.start(cases.publish_and_die, url, few, line, key) for key, line in at.items()]
    for process in running:
        process.join(30)
        assert process.exitcode in (-9, 0)  # 0: threads take turns, so not all lines always run
    assert sum(process.exitcode == -9 for process in running) > 6
    store = open_store(url)
    keys = store.keys()
    assert set(keys) <= {*at, KEY}
    if "://" not in url:  # what is not whole is hidden from whoever looks into the directory
        assert {path.name for path in Path(url).glob("[!.]*")} == set(keys)
    found = {key for key in at if check_after_kill(store, key, few, tmp_path / "cache")}
    assert found == set(keys) - {KEY}
    assert len(found) < 12


def test_kill_9_at_any_time(url: str, few: Path, tmp_path: Path) -> None:
    """By the clock: what a line of Python does is not done at once either."""
    store = open_store(url)
    store.find(KEY)
    start = time.monotonic()
    store.publish(KEY, few)
    usual = time.monotonic() - start
    dice = random.Random(11)
    gates = [tmp_path / f"gate-{number}" for number in range(8)]
    running = [cases.start(cases.publish_at, gate, url, few) for gate in gates]
    cases.wait_for(lambda: all(gate.with_suffix(".ready").exists() for gate in gates))
    for gate, process in zip(gates, running, strict=True):
        gate.touch()
        time.sleep(dice.uniform(0, 1.2) * usual)
        process.kill()
        process.join()
        check_after_kill(store, gate.name, few, tmp_path / "cache")


def test_two_that_start_compile_once(url: str, tmp_path: Path) -> None:
    works = [tmp_path / "one", tmp_path / "two"]
    running = [cases.start(cases.compile_if_mine, url, work, 2.0, 0.5) for work in works]
    cases.finish(*running)
    assert len(list(tmp_path.glob("*.compiled"))) == 1
    fetched = [cases.contents(work / "cache" / KEY) for work in works]
    assert fetched[0] == fetched[1]
    assert open_store(url).find(KEY)


def test_of_many_publishers_one_wins(url: str, tmp_path: Path) -> None:
    """Without a lock: its absence must cost nothing but time."""
    works = [tmp_path / f"work-{number}" for number in range(4)]
    for work in works:
        work.mkdir()
    running = [cases.start(cases.publish_own, url, work, tmp_path / "gate") for work in works]
    cases.wait_for(lambda: all((work / "ready").exists() for work in works))
    (tmp_path / "gate").touch()
    cases.finish(*running)
    winners = [work.name for work in works if (work / "won").read_text() == "True"]
    store = open_store(url)
    assert len(winners) == 1
    assert cases.verify(store, tmp_path / "cache") == {"model.pt": winners[0].encode() * 1000}


# Locks.


def test_the_lock_of_a_dead_process_is_taken_over(url: str, tmp_path: Path) -> None:
    holder = cases.start(cases.claim_and_stay, url, tmp_path / "ready", 1.0)
    cases.wait_for((tmp_path / "ready").exists)
    store = open_store(url)
    waited: list[tuple[float, str]] = []
    holder.kill()
    holder.join()
    start = time.monotonic()
    with store.claim(KEY, ttl_s=1.0, report=lambda *step: waited.append(step)) as mine:
        assert mine is True
        assert 0.5 < time.monotonic() - start < 6
        assert f"pid {holder.pid}" in waited[0][1]


def test_a_lock_that_is_held_is_not_waited_for(url: str) -> None:
    store = open_store(url)
    with store.claim(KEY) as mine:
        assert mine is True
        with store.claim(KEY, wait=False) as second:
            assert second is False
    with store.claim(KEY, wait=False) as mine:  # it was let go
        assert mine is True


def test_an_expired_lock_is_no_hindrance_to_who_does_not_wait(url: str, tmp_path: Path) -> None:
    holder = cases.start(cases.claim_and_stay, url, tmp_path / "ready", 0.5)
    cases.wait_for((tmp_path / "ready").exists)
    holder.kill()
    holder.join()
    time.sleep(0.7)
    with open_store(url).claim(KEY, wait=False, ttl_s=1.0) as mine:
        assert mine is True


def test_the_lock_of_a_living_process_is_not_taken(url: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    holder = cases.start(cases.compile_if_mine, url, work, 1.5, 2.5)
    cases.wait_for((tmp_path / "work.compiled").exists)
    start = time.monotonic()
    with open_store(url).claim(KEY, ttl_s=1.5) as mine:
        assert mine is False  # the waiter learns of the artifact, after more than a ttl
        assert time.monotonic() - start > 1.6
    assert open_store(url).find(KEY)
    cases.finish(holder)


def test_who_waits_stops_as_soon_as_the_artifact_is_there(url: str, source: Path) -> None:
    """The lock itself may be held on, or its holder be dead."""
    store = open_store(url)
    with store.claim(KEY, ttl_s=60.0):
        start = time.monotonic()
        later = threading.Timer(0.3, store.publish, (KEY, source))
        later.start()
        with store.claim(KEY, ttl_s=1.0) as mine:
            assert mine is False
        assert 0.3 <= time.monotonic() - start < 10
        later.join()


def test_a_failed_compile_lets_go(url: str) -> None:
    store = open_store(url)
    with pytest.raises(ZeroDivisionError), store.claim(KEY):
        raise ZeroDivisionError
    with store.claim(KEY, wait=False) as mine:
        assert mine is True


def test_a_lock_that_was_cut_off_expires(tmp_path: Path) -> None:
    (tmp_path / f"{KEY}.lock").touch()
    with open_store(str(tmp_path)).claim(KEY, ttl_s=0.3) as mine:
        assert mine is True


def test_a_lock_that_was_lost_is_not_removed_by_its_former_holder(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    lock = tmp_path / f"{KEY}.lock"
    with store.claim(KEY, ttl_s=0.3):
        lock.write_text('{"owner": "other", "id": "other", "ttl_s": 60, "beat": 0}')
        time.sleep(0.5)
        assert '"other"' in lock.read_text()
    assert '"other"' in lock.read_text()


# Fetch.


def test_a_fetch_goes_on_where_it_was_killed(url: str, source: Path, tmp_path: Path) -> None:
    store = open_store(url)
    store.publish(KEY, source)
    process = cases.start(cases.fetch_and_die, url, tmp_path / "cache", TOTAL * 2 // 3)
    cases.finish(process, code=-9)
    assert not (tmp_path / "cache" / KEY).exists()
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_of_two_that_fetch_one_brings_it(tmp_path: Path, source: Path) -> None:
    url = str(tmp_path / "store")
    open_store(url).publish(KEY, source)
    running = [cases.start(cases.fetch, url, tmp_path / "cache") for _ in range(3)]
    cases.finish(*running)
    assert cases.contents(tmp_path / "cache" / KEY) == FILES
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_a_fetch_waits_for_another_and_says_how_far_it_is(tmp_path: Path, source: Path) -> None:
    url = str(tmp_path / "store")
    open_store(url).publish(KEY, source)
    slow = cases.start(cases.fetch_slowly, url, tmp_path / "cache", 0.1)
    partial = tmp_path / f"cache/.{KEY}.partial"
    cases.wait_for((partial / MANIFEST).exists)
    seen: list[tuple[int, int, str]] = []
    store = open_store(url)
    store.fetch(KEY, tmp_path / "cache", report=lambda *step: seen.append(step))
    assert seen
    assert {step[1:] for step in seen} == {(TOTAL, MANIFEST)}
    cases.finish(slow)


def test_a_store_error_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(StoreError("what: why -> mend")))
    assert str(error) == "what: why -> mend"

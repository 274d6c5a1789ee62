"""The artifact store: what holds for every kind of store, and for directories."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.artifacts.store import StoreError, cache, open_store
from serve_app.artifacts.store.listing import parse
from tests.unit import artifact_cases as cases
from tests.unit.artifact_cases import FILES, KEY, MANIFEST, TOTAL, make

pytestmark = pytest.mark.timeout(60)
DAY_AGO = int(time.time()) - 25 * 3600


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source")


def fault(error: pytest.ExceptionInfo[StoreError]) -> str:
    """The text of an error, which must be one line with a mend."""
    text = str(error.value)
    assert "\n" not in text
    assert " -> " in text
    return text


# Publish and find.


def test_what_was_published_is_found_and_fetched_whole(
    url: str, source: Path, tmp_path: Path
) -> None:
    store = open_store(url)
    assert store.find(KEY) is None
    assert store.keys() == []
    assert store.publish(KEY, source) is True
    assert store.find(KEY) == json.loads((source / MANIFEST).read_text())
    assert store.keys() == [KEY]
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_the_first_publisher_wins(url: str, source: Path, tmp_path: Path) -> None:
    store = open_store(url)
    store.publish(KEY, source)
    other = make(tmp_path / "other", {"model.pt": b"other"})
    assert store.publish(KEY, other) is False
    assert store.publish("another-key", other) is True
    assert store.keys() == [KEY, "another-key"]
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_remove(url: str, source: Path) -> None:
    store = open_store(url)
    store.remove(KEY)
    store.publish(KEY, source)
    store.remove(KEY)
    assert store.find(KEY) is None
    assert store.keys() == []
    assert store.publish(KEY, source) is True


def test_progress_is_reported_in_bytes(url: str, source: Path, tmp_path: Path) -> None:
    store = open_store(url)
    steps: list[tuple[int, int, str]] = []

    def check() -> None:
        done = [step[0] for step in steps]
        assert done == sorted(done)
        assert done[-1] == TOTAL
        assert {step[1] for step in steps} == {TOTAL}
        assert {step[2] for step in steps} == {path for path, data in FILES.items() if data}
        steps.clear()

    store.publish(KEY, source, lambda *step: steps.append(step))
    check()
    store.fetch(KEY, tmp_path / "cache", report=lambda *step: steps.append(step))
    check()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: (d / MANIFEST).unlink(), "has no neuron-serve.json: its compile did not finish"),
        (lambda d: (d / "model.pt").unlink(), "model.pt is missing"),
        (lambda d: os.truncate(d / "model.pt", 5), "model.pt has 5 of 300000 bytes"),
        (lambda d: (d / "weights/new.pt").touch(), "weights/new.pt is not named in neuron-serve"),
        (lambda d: (d / "linked").symlink_to(d / "weights"), "linked is not named in neuron-serve"),
        (
            lambda d: (d / "model.pt").write_bytes(FILES["model.pt"][:-1] + b"?"),
            "model.pt is not what its manifest says",
        ),
    ],
)
def test_a_damaged_directory_is_not_published(
    url: str, source: Path, tmp_path: Path, damage, says: str
) -> None:
    store = open_store(url)
    damage(source)
    with pytest.raises(StoreError) as error:
        store.publish(KEY, source)
    assert says in fault(error)
    assert "compile it again" in fault(error)
    assert store.find(KEY) is None
    assert not list(tmp_path.glob("store/.*"))


def test_a_source_that_cannot_be_read(url: str, tmp_path: Path) -> None:
    source = make(tmp_path / "source", {"a": b"a", "model.pt": b""})
    (source / "model.pt").unlink()
    (source / "model.pt").symlink_to("/proc/self/mem")  # empty by its size, and reading it fails
    store = open_store(url)
    with pytest.raises(StoreError) as error:
        store.publish(KEY, source)
    assert "the disk or the mount failed -> look at dmesg" in fault(error)
    assert store.find(KEY) is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "a.lock", "ä", "x" * 200])
def test_a_key_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    store = open_store(str(tmp_path))
    for work in (store.find, store.remove, store.fetch, store.claim):
        with pytest.raises(StoreError) as error:
            work(name)
        assert "is no key" in fault(error)


def test_plain_paths_and_file_urls_are_the_same_store(tmp_path: Path, source: Path) -> None:
    open_store(f"file://{tmp_path}/store").publish(KEY, source)
    assert open_store(str(tmp_path / "store")).keys() == [KEY]


def test_other_file_systems_of_fsspec(source: Path, tmp_path: Path) -> None:
    store = open_store("memory://some/prefix")
    assert store.publish(KEY, source) is True
    assert store.publish(KEY, source) is False
    with store.claim("other") as mine:
        assert mine
    assert store.keys() == [KEY]
    assert cases.verify(store, tmp_path / "cache") == FILES
    store.remove(KEY)
    assert store.keys() == []


def test_leftovers_of_dead_publishers_go_after_a_day(tmp_path: Path, source: Path) -> None:
    root = tmp_path / "store"
    old = make(root / f".{KEY}.{DAY_AGO}-0123456789ab.partial")
    note = root / f".{KEY}.lock.{DAY_AGO}-0123456789ab.partial"
    note.touch()
    young = make(root / f".{KEY}.{int(time.time())}-0123456789ab.partial")
    foreign = make(root / ".snapshot.partial")
    store = open_store(str(root))
    assert store.keys() == []
    store.publish(KEY, source)
    assert not old.exists()
    assert not note.exists()
    assert young.exists()
    assert foreign.exists()


# Manifests.


def test_a_manifest_cut_off_anywhere_is_corrupt(source: Path) -> None:
    text = (source / MANIFEST).read_bytes()
    parse(text, "here")
    for end in range(len(text)):
        with pytest.raises(StoreError, match="the manifest here is corrupt"):
            parse(text[:end], "here")


@given(
    st.text(alphabet="./\\a\0\n ~ä") | st.sampled_from(["../x", "/etc/x", "a/../../x", MANIFEST])
)
def test_no_path_of_a_manifest_leads_out_of_the_artifact(path: str) -> None:
    text = json.dumps({"files": {path: {"size": 1, "sha256": "0" * 64}}})
    try:
        parse(text.encode(), "here")
    except StoreError:
        return
    assert os.path.normpath(os.path.join("/root", path)) == f"/root/{path}"  # noqa: PTH118
    assert path != MANIFEST


@pytest.mark.parametrize(
    "entry",
    [{}, {"size": -1, "sha256": "0" * 64}, {"size": "1", "sha256": "0" * 64}, [], {"size": 1}]
    + [{"size": 1, "sha256": bad} for bad in ("", "0" * 63, "G" * 64, None)],
)
def test_an_entry_that_is_no_entry_is_corrupt(entry: object) -> None:
    with pytest.raises(StoreError, match="corrupt"):
        parse(json.dumps({"files": {"model.pt": entry}}).encode(), "here")


def test_a_truncated_manifest_in_the_store_can_be_mended(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.publish(KEY, source)
    manifest = tmp_path / "store" / KEY / MANIFEST
    os.truncate(manifest, 40)
    for work in (
        lambda: store.find(KEY),
        lambda: store.fetch(KEY, tmp_path / "cache"),
        lambda: store.fetch(KEY),
        lambda: store.publish(KEY, source),
    ):
        with pytest.raises(StoreError) as error:
            work()
        assert f"the manifest {manifest} is corrupt" in fault(error)
    store.remove(KEY)
    assert store.publish(KEY, source) is True


# Fetch.


def test_a_directory_is_used_in_place(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(StoreError, match="has no artifact"):
        store.fetch(KEY)
    store.publish(KEY, source)
    directory = store.fetch(KEY)
    assert directory == tmp_path / "store" / KEY
    assert cases.contents(directory) == FILES
    (directory / "model.pt").unlink()
    with pytest.raises(StoreError, match=r"model\.pt is missing -> "):
        store.fetch(KEY)


def test_an_artifact_that_is_not_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        open_store(url).fetch(KEY, tmp_path / "cache")
    assert f"has no artifact {KEY}" in fault(error)


def test_what_is_cached_needs_no_store(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.publish(KEY, source)
    cases.verify(store, tmp_path / "cache")
    store.remove(KEY)
    assert cases.contents(store.fetch(KEY, tmp_path / "cache")) == FILES


def test_a_damaged_cache_is_mended(url: str, tmp_path: Path, source: Path) -> None:
    store = open_store(url)
    store.publish(KEY, source)
    cases.verify(store, tmp_path / "cache")
    entry = tmp_path / "cache" / KEY
    weights = entry / "weights/tp0_sharded_checkpoint.safetensors"
    kept = (entry / "model.pt").stat().st_ino
    for damage in (
        weights.unlink,
        lambda: os.truncate(weights, 5),
        lambda: os.truncate(entry / MANIFEST, 5),
    ):
        damage()
        assert cases.verify(store, tmp_path / "cache") == FILES
        assert (entry / "model.pt").stat().st_ino == kept


def test_a_wrong_checksum_in_the_store(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.publish(KEY, source)
    (tmp_path / "store" / KEY / "model.pt").write_bytes(bytes(300_000))
    with pytest.raises(StoreError) as error:
        store.fetch(KEY, tmp_path / "cache")
    assert "model.pt" in fault(error)
    assert "wrong checksum" in fault(error)
    assert not (tmp_path / "cache" / KEY).exists()
    with (tmp_path / f"cache/.{KEY}.use").open() as lock:  # what failed holds nothing
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("damage", "says"),
    [(Path.unlink, "model.pt is missing"), (lambda path: os.truncate(path, 5), "ends after 5 of")],
)
def test_a_file_that_the_store_lost(tmp_path: Path, source: Path, damage, says: str) -> None:
    store = open_store(str(tmp_path / "store"))
    store.publish(KEY, source)
    damage(tmp_path / "store" / KEY / "model.pt")
    with pytest.raises(StoreError) as error:
        store.fetch(KEY, tmp_path / "cache")
    assert says in fault(error)
    assert "model.pt" in fault(error)
    assert not (tmp_path / "cache" / KEY).exists()


# The cache's limit.


@pytest.fixture
def three(tmp_path: Path):
    """A store with the artifacts a, b and c of 1 MB each, and a cache that has a and b."""
    store = open_store(str(tmp_path / "store"))
    for key in "abc":
        store.publish(key, make(tmp_path / f"source-{key}", {"model.pt": key.encode() * 1_000_000}))
    for key in "ab":
        cache.release(store.fetch(key, tmp_path / "cache"))
        time.sleep(0.02)
    return store


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()}


def test_the_least_recently_used_goes_first(three, tmp_path: Path) -> None:
    cache.release(three.fetch("a", tmp_path / "cache"))
    cache.release(three.fetch("c", tmp_path / "cache", limit_bytes=2_500_000))
    assert cached(tmp_path) == {"a", "c"}
    cache.release(three.fetch("b", tmp_path / "cache", limit_bytes=1_100_000))
    assert cached(tmp_path) == {"b"}


def test_what_is_in_use_is_not_removed(three, tmp_path: Path) -> None:
    user = cases.start(
        cases.fetch_and_stay, str(tmp_path / "store"), tmp_path / "cache", tmp_path / "ready", "a"
    )
    cases.wait_for((tmp_path / "ready").exists)
    cache.release(three.fetch("c", tmp_path / "cache", limit_bytes=2_500_000))
    assert cached(tmp_path) == {"a", "c"}
    held = three.fetch("c", tmp_path / "cache")
    with pytest.raises(StoreError) as error:
        three.fetch("b", tmp_path / "cache", limit_bytes=2_500_000)
    assert cached(tmp_path) == {"a", "c"}
    assert "it needs 0.000931 GiB" in fault(error)
    needed = int(fault(error).split("(")[-1].split()[0])
    with pytest.raises(StoreError):
        three.fetch("b", tmp_path / "cache", limit_bytes=needed - 1)
    user.kill()  # what a dead process used is free
    user.join()
    cache.release(three.fetch("b", tmp_path / "cache", limit_bytes=needed - 1))
    assert cached(tmp_path) == {"b", "c"}
    cache.release(held)


def test_one_that_can_never_fit_removes_nothing(three, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="set the limit to at least"):
        three.fetch("c", tmp_path / "cache", limit_bytes=999_999)
    assert cached(tmp_path) == {"a", "b"}


def test_directories_of_others_are_never_removed(three, tmp_path: Path) -> None:
    mine = make(tmp_path / "cache/mine")
    cache.release(three.fetch("c", tmp_path / "cache", limit_bytes=1_100_000))
    assert cached(tmp_path) == {"c", "mine"}
    assert cases.contents(mine) == FILES


def test_a_disk_that_is_too_small_is_known_beforehand(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.publish(KEY, source)
    manifest = tmp_path / "store" / KEY / MANIFEST
    manifest.write_text(manifest.read_text().replace("300000", str(2**60)))
    with pytest.raises(StoreError) as error:
        store.fetch(KEY, tmp_path / "cache")
    assert "it needs 1.07e+09 GiB" in fault(error)


# Directories that cannot be written.


def test_publish_below_a_file(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").touch()
    store = open_store(str(tmp_path / "file/store"))
    for work in (lambda: store.publish(KEY, source), lambda: store.claim(KEY).__enter__()):
        with pytest.raises(StoreError) as error:
            work()
        assert "a part of the path is a file" in fault(error)


def test_publish_to_a_directory_that_is_read_only() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        source = make(root / "source")
        (root / "store").mkdir(mode=0o555)
        process = cases.start(cases.publish_as_nobody, str(root / "store"), source, root / "said")
        cases.finish(process)
        assert (root / "said").read_text() == (
            f"cannot publish to {root}/store: permission denied -> "
            "give this user access, or use another directory"
        )
        assert not list((root / "store").iterdir())


def test_a_full_disk_while_publishing(tmp_path: Path, source: Path) -> None:
    url, said = str(tmp_path / "store"), tmp_path / "said"
    cases.finish(cases.start(cases.publish_with_small_files, url, source, said))
    assert said.read_text() == (
        f"cannot publish to {url}: files may not be this large here -> "
        "raise `ulimit -f`, or use another disk"
    )
    assert not list(Path(url).iterdir())
    assert open_store(url).publish(KEY, source) is True


def test_a_full_disk_while_fetching(tmp_path: Path, source: Path) -> None:
    store, said = open_store(str(tmp_path / "store")), tmp_path / "said"
    store.publish(KEY, source)
    process = cases.start(
        cases.fetch_with_small_files, str(tmp_path / "store"), tmp_path / "cache", said
    )
    cases.finish(process)
    assert "files may not be this large here" in said.read_text()
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_a_device_without_space(tmp_path: Path, source: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    store.publish(KEY, source)
    partial = tmp_path / f"cache/.{KEY}.partial"
    partial.mkdir(parents=True)
    (partial / "model.pt").symlink_to("/dev/full")
    with pytest.raises(StoreError) as error:
        store.fetch(KEY, tmp_path / "cache")
    assert "the disk is full -> free space there" in fault(error)
    (partial / "model.pt").unlink()
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_a_directory_that_is_in_the_way(tmp_path: Path, source: Path) -> None:
    (tmp_path / "store" / KEY / "weights").mkdir(parents=True)
    with pytest.raises(StoreError) as error:
        open_store(str(tmp_path / "store")).publish(KEY, source)
    assert f"remove {tmp_path}/store/{KEY}" in fault(error)
    assert [path.name for path in (tmp_path / "store").iterdir()] == [KEY]


# What is imported.


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_plain_path_needs_no_package(tmp_path: Path, source: Path) -> None:
    code = f"""
import sys
for name in ("fsspec", "s3fs", "botocore"):
    sys.modules[name] = None
from pathlib import Path
from serve_app.artifacts.store import open_store
print(open_store({str(tmp_path / "store")!r}).publish("a", Path({str(source)!r})))
"""
    assert python(code) == "True"


@pytest.mark.parametrize("package", ["fsspec", "s3fs"])
def test_a_missing_package_is_named(package: str) -> None:
    code = f"""
import sys
from serve_app.artifacts.store import StoreError, open_store
assert not {{"fsspec", "s3fs", "botocore"}} & set(sys.modules)
sys.modules[{package!r}] = None
try:
    open_store("s3://bucket")
except StoreError as error:
    print(error)
"""
    assert python(code).endswith("a package is missing -> pip install neuron-serve[s3]")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "names no bucket"),
        ("", "the store has no name"),
        ("file://", "the store has no name"),
        ("nothing://user:pass@place/x", "cannot open nothing://place/x: nothing:// is unknown"),
    ],
)
def test_a_url_that_is_none(url: str, says: str) -> None:
    with pytest.raises(StoreError) as error:
        open_store(url)
    assert says in fault(error)

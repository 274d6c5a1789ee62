"""The artifact store on S3: what goes wrong on the wire, and what is said then."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from serve_app.artifacts.store import Store, StoreError, cache, objects, open_store
from tests.unit import artifact_cases as cases
from tests.unit.artifact_cases import FILES, KEY, MANIFEST, TOTAL, make
from tests.unit.conftest import S3_ENVIRONMENT
from tests.unit.s3_server import Environ, S3Server, hang_up, s3_error

pytestmark = pytest.mark.timeout(60)
WEIGHTS = "weights/tp0_sharded_checkpoint.safetensors"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "source")


def fault(work: Callable[[], object]) -> str:
    """The error of `work`: one line with a mend, without credentials or foreign tracebacks."""
    with pytest.raises(StoreError) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    assert " -> " in text
    shown = "".join(traceback.format_exception(error.value))
    for word in ("SECRET", "botocore", "aiohttp", "s3fs", "fsspec"):
        assert word not in shown.replace("fsspec alone", "")
    return text


def is_upload_of(environ: Environ, name: str) -> bool:
    return environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(f"/{name}")


def bucket_of(url: str) -> str:
    return url.split("/")[2]


def objects_of(s3: S3Server, url: str) -> list[str]:
    """Names of all objects, as they stand below the store's prefix."""
    found = s3.client.list_objects_v2(Bucket=bucket_of(url)).get("Contents", [])
    return [entry["Key"].removeprefix("some/prefix/") for entry in found]


def uploads_of(s3: S3Server, url: str) -> list[str]:
    """Names of all files of which only parts were uploaded."""
    found = s3.client.list_multipart_uploads(Bucket=bucket_of(url)).get("Uploads", [])
    return [entry["Key"].removeprefix("some/prefix/") for entry in found]


def put(s3: S3Server, url: str, name: str, body: bytes) -> None:
    s3.client.put_object(Bucket=bucket_of(url), Key=f"some/prefix/{name}", Body=body)


# Publish.


def test_the_objects_of_an_artifact(s3: S3Server, bucket: str, source: Path) -> None:
    open_store(bucket).publish(KEY, source)
    names = objects_of(s3, bucket)
    assert f"{KEY}/{MANIFEST}" in names
    attempts = {name.split("/")[1] for name in names} - {MANIFEST}
    assert len(attempts) == 1
    assert {name.split("/", 2)[2] for name in names if name.count("/") > 1} == set(FILES)
    open_store(bucket).remove(KEY)
    removed = [path for method, path in s3.requests if method == "DELETE"]
    assert f"{KEY}/{MANIFEST}?" in removed[0]  # or a reader would find half of an artifact
    assert objects_of(s3, bucket) == []


def test_the_files_of_the_loser_go(s3: S3Server, bucket: str, source: Path, tmp_path: Path) -> None:
    """Another publishes between this one's look and its manifest."""
    other = make(tmp_path / "other", {"model.pt": b"other"})

    def interfere(environ: Environ) -> None:
        if is_upload_of(environ, MANIFEST):
            s3.fault = lambda environ: None
            assert open_store(bucket).publish(KEY, other) is True

    s3.fault = interfere
    store = open_store(bucket)
    assert store.publish(KEY, source) is False
    assert cases.verify(store, tmp_path / "cache") == {"model.pt": b"other"}
    assert len(objects_of(s3, bucket)) == 2


def test_a_manifest_whose_answer_was_lost(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client sends it again and hears that there is one: its own."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    lost = []

    def lose(environ: Environ, body: bytes) -> bytes:
        if is_upload_of(environ, MANIFEST) and not lost:
            lost.append(True)
            hang_up(environ)
        return body

    s3.tamper = lose
    store = open_store(bucket)
    assert store.publish(KEY, source) is True
    assert lost
    assert sum(request == "PUT" and f"{MANIFEST}?" in path for request, path in s3.requests) == 2
    assert cases.verify(store, tmp_path / "cache") == FILES


@pytest.mark.parametrize("how", ["ignores", "refuses", "is busy"])
def test_a_server_without_conditional_writes(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path, how: str
) -> None:
    busy = [True, True]

    def fault(environ: Environ) -> tuple[str, bytes] | None:
        if "HTTP_IF_NONE_MATCH" in environ:
            if how == "refuses":
                return s3_error("501 Not Implemented", "NotImplemented")
            if how == "is busy" and busy:
                busy.pop()
                return s3_error("409 Conflict", "ConditionalRequestConflict")
            if how == "ignores":
                del environ["HTTP_IF_NONE_MATCH"]
        return None

    s3.fault = fault
    store = open_store(bucket)
    with store.claim(KEY) as mine, store.claim(KEY, wait=False) as second:
        assert (mine, second) == (True, False)
    assert store.publish(KEY, source) is True
    assert store.publish(KEY, source) is False
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_parts(s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of several parts, and that parts are taken back when the rest fails."""
    monkeypatch.setattr(objects, "_PART", 5 * 2**20)
    large = {"model.pt": bytes(range(256)) * (12 * 2**12)}
    source = make(tmp_path / "large", large)
    store = open_store(bucket)
    assert store.publish(KEY, source) is True
    assert cases.verify(store, tmp_path / "cache") == large
    assert sum("partNumber=" in path for _, path in s3.requests) == 2
    store.remove(KEY)
    (source / "model.pt").write_bytes(large["model.pt"][:-1] + b"?")
    assert "is not what its manifest says" in fault(lambda: store.publish(KEY, source))
    assert objects_of(s3, bucket) == []
    assert uploads_of(s3, bucket) == []


def test_an_upload_that_fails_midway(s3: S3Server, bucket: str, source: Path) -> None:
    s3.fault = lambda environ: (
        s3_error("403 Forbidden", "AccessDenied") if is_upload_of(environ, "model.pt") else None
    )
    store = open_store(bucket)
    text = fault(lambda: store.publish(KEY, source))
    assert text.startswith(f"cannot publish model.pt to {bucket}: access denied -> allow s3:PutObj")
    s3.fault = lambda environ: None
    assert store.find(KEY) is None
    assert objects_of(s3, bucket) == []
    assert store.publish(KEY, source) is True


def test_an_object_that_vanishes_before_the_manifest(
    s3: S3Server, bucket: str, source: Path
) -> None:
    """As when another takes a publisher that slept for a day for dead."""
    gone = []

    def fault_(environ: Environ) -> tuple[str, bytes] | None:
        if is_upload_of(environ, "model.pt"):
            gone.append(True)
            return "200 OK", b""
        return None

    s3.fault = fault_
    store = open_store(bucket)
    assert "model.pt did not arrive whole" in fault(lambda: store.publish(KEY, source))
    assert gone
    assert store.find(KEY) is None


def test_leftovers_of_dead_publishers_go_after_a_day(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket)
    old, young = int(time.time()) - 25 * 3600, int(time.time())
    with monkeypatch.context() as yesterday:
        yesterday.setattr(objects, "attempt_name", lambda: f"{old}-00000000aaaa")
        store.publish(KEY, source)
    for path in (
        f"{KEY}/{old}-0123456789ab/model.pt",
        f"other/{old}-0123456789ab/model.pt",
        f"other/{young}-0123456789ab/model.pt",
        f"other/{old}-own-file",
    ):
        put(s3, bucket, path, b"x")
    for attempt in (f"{old}-0123456789ab", f"{young}-0123456789ab"):
        s3.client.create_multipart_upload(
            Bucket=bucket_of(bucket), Key=f"some/prefix/{KEY}/{attempt}/weights/half"
        )
    store.publish("third", source)
    assert uploads_of(s3, bucket) == [f"{KEY}/{young}-0123456789ab/weights/half"]
    names = objects_of(s3, bucket)
    assert f"{KEY}/{old}-0123456789ab/model.pt" not in names
    assert {name for name in names if name.startswith("other/")} == {
        f"other/{young}-0123456789ab/model.pt",
        f"other/{old}-own-file",
    }
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_a_lock_taken_just_after_another_published(s3: S3Server, bucket: str, source: Path) -> None:
    """It published and let go between this one's look for the artifact and its lock."""

    def interfere(environ: Environ) -> None:
        if is_upload_of(environ, f"{KEY}.lock"):
            s3.fault = lambda environ: None
            assert open_store(bucket).publish(KEY, source) is True

    s3.fault = interfere
    with open_store(bucket).claim(KEY) as mine:
        assert mine is False
    assert f"{KEY}.lock" not in objects_of(s3, bucket)


# Fetch.


def test_a_fetch_asks_only_for_what_is_missing(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path
) -> None:
    store = open_store(bucket)
    store.publish(KEY, source)
    partial = tmp_path / f"cache/.{KEY}.partial"
    (partial / "weights").mkdir(parents=True)
    (partial / "model.pt").write_bytes(FILES["model.pt"])
    (partial / WEIGHTS).write_bytes(FILES[WEIGHTS][:1_000_000])
    (partial / "of-another-day").touch()
    assert cases.verify(store, tmp_path / "cache") == FILES
    assert s3.bytes_sent == TOTAL - 300_000 - 1_000_000


def test_a_killed_fetch_asks_only_for_what_is_missing(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket)
    store.publish(KEY, source)
    # By name: what the dead one asked for may be answered after its death.
    s3.counted_app = "the-second-one"
    process = cases.start(cases.fetch_and_die, bucket, tmp_path / "cache", TOTAL // 4)
    process.join(30)
    partial = tmp_path / f"cache/.{KEY}.partial"
    kept = sum(map(len, cases.contents(partial).values()))
    assert kept > 0
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", s3.counted_app)
    assert cases.verify(open_store(bucket), tmp_path / "cache") == FILES
    assert s3.bytes_sent == TOTAL - kept


def test_a_half_file_that_is_wrong_is_fetched_anew(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path
) -> None:
    store = open_store(bucket)
    store.publish(KEY, source)
    partial = tmp_path / f"cache/.{KEY}.partial"
    partial.mkdir(parents=True)
    (partial / "model.pt").write_bytes(bytes(100_000))
    assert cases.verify(store, tmp_path / "cache") == FILES
    assert s3.bytes_sent == TOTAL + 200_000


def test_two_processes_fetch_once(s3: S3Server, bucket: str, source: Path, tmp_path: Path) -> None:
    open_store(bucket).publish(KEY, source)
    running = [cases.start(cases.fetch, bucket, tmp_path / "cache") for _ in range(2)]
    cases.finish(*running)
    assert s3.bytes_sent == TOTAL


def test_a_wrong_checksum_is_fetched_once_more(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path
) -> None:
    store = open_store(bucket)
    store.publish(KEY, source)
    wrong = [True]

    def tamper(environ: Environ, body: bytes) -> bytes:
        if "HTTP_RANGE" in environ and environ["PATH_INFO"].endswith(WEIGHTS) and wrong:
            wrong.pop()
            return bytes(len(body))
        return body

    s3.tamper = tamper
    assert cases.verify(store, tmp_path / "cache") == FILES
    assert s3.bytes_sent == TOTAL + len(FILES[WEIGHTS])
    wrong += [True, True]
    text = fault(lambda: store.fetch(KEY, tmp_path / "second"))
    assert WEIGHTS in text
    assert "has a wrong checksum" in text
    assert not wrong
    assert not (tmp_path / "second" / KEY).exists()
    assert cases.verify(store, tmp_path / "second") == FILES


def test_an_object_that_the_store_lost(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path
) -> None:
    store = open_store(bucket)
    store.publish(KEY, source)
    name = next(name for name in objects_of(s3, bucket) if name.endswith(WEIGHTS))
    put(s3, bucket, name, b"short")
    assert "it is shorter than its manifest says" in fault(
        lambda: store.fetch(KEY, tmp_path / "cache")
    )
    s3.client.delete_object(Bucket=bucket_of(bucket), Key=f"some/prefix/{name}")
    text = fault(lambda: store.fetch(KEY, tmp_path / "other"))
    assert f"{WEIGHTS} in {bucket}: it is not in the store -> remove the artifact" in text


def test_a_store_without_a_cache(bucket: str) -> None:
    assert "name a cache directory" in fault(lambda: open_store(bucket).fetch(KEY))


@pytest.mark.parametrize("text", [b'{"files": {', b"", b'{"files": {}, "attempt": "../x"}'])
def test_a_manifest_that_is_corrupt(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path, text: bytes
) -> None:
    store = open_store(bucket)
    put(s3, bucket, f"{KEY}/{MANIFEST}", text)
    for work in (
        lambda: store.find(KEY),
        lambda: store.fetch(KEY, tmp_path / "cache"),
        lambda: store.publish(KEY, source),
    ):
        assert f"the manifest {bucket}/{KEY}/{MANIFEST} " in fault(work)
    store.remove(KEY)
    assert store.publish(KEY, source) is True


# What S3 refuses.


def everything(store: Store, source: Path, cache_directory: Path) -> list[Callable[[], object]]:
    return [
        lambda: store.find(KEY),
        store.keys,
        lambda: store.publish(KEY, source),
        lambda: store.fetch(KEY, cache_directory),
        lambda: store.claim(KEY).__enter__(),
        lambda: store.remove(KEY),
    ]


def test_no_such_bucket(s3: S3Server, source: Path, tmp_path: Path) -> None:
    store = open_store("s3://no-such-bucket/prefix")
    for work in everything(store, source, tmp_path / "cache"):
        assert "there is no such bucket -> mend the url, or create the bucket" in fault(work)


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "access denied -> allow s3:"),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWNSECRET"}, "the access key is unknown -> set AWS_PROFI"),
        ({"AWS_SECRET_ACCESS_KEY": "SECRET"}, "the secret key does not fit the access key"),
    ],
)
def test_what_iam_refuses(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str,
) -> None:  # fmt: skip
    user = s3.user_without_rights
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    for name, value in (user | environment).items():
        monkeypatch.setenv(name, value)
    store = open_store(bucket)
    with s3.guarded():
        for work in everything(store, source, tmp_path / "cache"):
            text = fault(work)
            assert says in text
            assert user["AWS_SECRET_ACCESS_KEY"] not in text
            assert user["AWS_ACCESS_KEY_ID"] not in text


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        ("400 Bad Request", "ExpiredToken", "the credentials have expired -> log in again"),
        ("400 Bad Request", "InvalidToken", "the session token is not valid -> log in again"),
        ("403 Forbidden", "RequestTimeTooSkewed", "the clock of this machine is wrong"),
        ("503 Slow Down", "SlowDown", "the store is overloaded -> try again"),
        ("400 Bad Request", "AuthorizationHeaderMalformed", "in another region -> set AWS_REGION"),
        ("418 Teapot", "NeverHeardOf", "the server answers NeverHeardOf -> "),
    ],
)
def test_what_else_s3_can_answer(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path, status: str, code: str, says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = open_store(bucket)
    s3.fault = lambda environ: s3_error(status, code)
    for work in (
        lambda: store.find(KEY),
        lambda: store.publish(KEY, source),
        lambda: store.fetch(KEY, tmp_path / "cache"),
    ):
        assert says in fault(work)


def test_credentials_that_expire_while_publishing(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path
) -> None:
    """After the files, before the manifest: the files stay invisible and may stay."""
    s3.fault = lambda environ: (
        s3_error("400 Bad Request", "ExpiredToken") if is_upload_of(environ, MANIFEST) else None
    )
    store = open_store(bucket)
    assert "the credentials have expired" in fault(lambda: store.publish(KEY, source))
    s3.fault = lambda environ: None
    assert store.find(KEY) is None
    assert store.publish(KEY, source) is True
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_no_credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(S3_ENVIRONMENT)[:3]:
        monkeypatch.delenv(name)
    text = fault(lambda: open_store("s3://bucket").find(KEY))
    assert "there are no credentials -> set AWS_PROFILE" in text


def test_the_network_is_down(
    s3: S3Server, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    store = open_store("s3://bucket")
    for work in everything(store, source, tmp_path / "cache"):
        assert "the network is down or the server away -> check the network" in fault(work)


def test_the_network_goes_down_while_fetching(
    s3: S3Server, bucket: str, source: Path, tmp_path: Path
) -> None:
    store = open_store(bucket)
    store.publish(KEY, source)

    def cut(environ: Environ, body: bytes) -> bytes:
        if "HTTP_RANGE" in environ and environ["PATH_INFO"].endswith(WEIGHTS):
            hang_up(environ)
        return body

    s3.tamper = cut
    assert "-> check the network" in fault(lambda: store.fetch(KEY, tmp_path / "cache"))
    s3.tamper = lambda environ, body: body
    assert cases.verify(store, tmp_path / "cache") == FILES


def test_a_password_in_a_url_is_not_shown() -> None:
    url = "s3://AKIASECRET:SECRET@/?token=SECRET"
    text = fault(lambda: open_store(url))
    assert text.startswith("s3:// names no bucket")


def test_json_numbers_survive(bucket: str, tmp_path: Path) -> None:
    """The manifest is written anew on its way: nothing of it may change."""
    fields = {"float": 0.1, "large": 2**60, "text": "ü\u2028", "none": None, "nested": [{"a": []}]}
    source = make(tmp_path / "source", {"a": b"a"}, **fields)
    store = open_store(bucket)
    store.publish(KEY, source)
    directory = store.fetch(KEY, tmp_path / "cache")
    cache.release(directory)
    assert json.loads((directory / MANIFEST).read_text()) == json.loads(
        (source / MANIFEST).read_text()
    )

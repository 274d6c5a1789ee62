"""Keys: the file's form, whose a presented key is, and a file that changes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.access import key_file
from serve_app.access.key_file import KeyFile
from serve_app.access.keyring import (
    EXPIRED,
    KEY,
    MALFORMED,
    MISSING,
    UNKNOWN,
    Key,
    Keyring,
    Refused,
    bearer,
    dump,
    issue,
    parse,
)
from serve_app.access.quota import Quota
from serve_app.config import ConfigError

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECRET = "Zq" + "x" * 41
ALICE = f"ns-ka1-{SECRET}"
HASH = sha256(ALICE.encode()).hexdigest()
ENTRY = {"id": "ka1", "name": "alice", "sha256": HASH}


def text_of(*entries: dict[str, Any]) -> str:
    return yaml.safe_dump({"keys": list(entries)})


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(text, "keys.yaml")
    return [str(finding) for finding in caught.value.findings]


def test_every_field_is_read() -> None:
    (key,) = parse(
        f"""
        keys:
          - id: ka1
            name: alice
            sha256: {HASH}
            models: [llama, qwen]
            expires: 2027-01-01
            admin: true
            priority: -3
            requests_per_minute: 60
            tokens_per_minute: 10000
            concurrent_requests: 4
            max_tokens: 1024
        """
    ).keys
    assert (key.id, key.name, key.admin, key.priority, key.max_tokens) == (
        "ka1",
        "alice",
        True,
        -3,
        1024,
    )
    assert key.quota == Quota(60, 10000, 4)
    assert not key.quota.unlimited
    assert key.expires == datetime(2027, 1, 1, tzinfo=UTC)
    assert (key.allows("qwen"), key.allows("other")) == (True, False)


def test_what_is_absent_is_no_limit() -> None:
    (key,) = parse(text_of(ENTRY)).keys
    assert key.quota.unlimited
    assert key.allows("anything")
    assert not key.expired(datetime.max.replace(tzinfo=UTC))


def test_json_is_read_too() -> None:
    text = json.dumps({"keys": [{**ENTRY, "expires": "2027-01-01T02:00:00+02:00"}]})
    assert parse(text).keys[0].expires == datetime(2027, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"models": "llama"}, "keys[0].models: expected a list of names"),
        ({"models": []}, "keys[0].models: expected a list of names"),
        ({"models": [1]}, "keys[0].models: expected a list of names"),
        ({"name": "a b"}, "keys[0].name: expected 1 to 64 letters"),
        ({"name": "alice\n"}, "keys[0].name: expected 1 to 64 letters"),
        ({"name": ALICE}, "keys[0].name: expected 1 to 64 letters"),
        ({"id": "k-1"}, "keys[0].id: expected 1 to 32 letters"),
        ({"sha256": HASH.upper()}, "keys[0].sha256: expected 64 hex digits"),
        ({"sha256": ALICE}, "keys[0].sha256: expected 64 hex digits"),
        ({"expires": "soon"}, "keys[0].expires: expected a date"),
        ({"expires": 5}, "keys[0].expires: expected a date"),
        ({"admin": "yes"}, "keys[0].admin: expected true or false"),
        ({"priority": True}, "keys[0].priority: expected a whole number"),
        ({"requests_per_minute": 0}, "keys[0].requests_per_minute: expected a whole number from 1"),
        ({"tokens_per_minute": 1.0}, "keys[0].tokens_per_minute: expected a whole number from 1"),
        ({"concurrent_requests": "4"}, "keys[0].concurrent_requests: expected a whole number"),
        ({"max_tokens": 2**40}, "keys[0].max_tokens: expected a whole number from 1"),
        ({"expire": 1}, "keys[0]: unknown key 'expire' -> did you mean 'expires'?"),
        ({ALICE: 1}, "keys[0]: unknown key -> known: admin"),
    ],
)
def test_a_wrong_field_is_named_and_not_repeated(change: dict[str, Any], said: str) -> None:
    (fault,) = faults(text_of({**ENTRY, **change}))
    assert fault.startswith(said), fault
    assert SECRET not in fault
    assert HASH[:8] not in fault.lower()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected `keys:` and a list"),
        ("keys:", "keys: expected a list of keys"),
        ("keys: [1]", "keys[0]: expected a mapping"),
        (f"keys: [{ALICE}]", "keys[0]: expected a mapping"),
        ("keyz: []\nkeys: []", "unknown key 'keyz' -> did you mean 'keys'?"),
        ("keys: []\nkeys: []", "line 2: the key 'keys' stands twice -> keep one"),
        ("keys:\n- id: ka1\n  id: ka2", "line 3: the key 'id' stands twice -> keep one"),
        (f"keys:\n  {ALICE}: [\n", "line 3: it is not valid YAML"),
        (f"keys: *{ALICE}", "line 1: it is not valid YAML"),
        ("keys: !!bool x", "it is not valid YAML"),
        ("keys: 2027-99-99", "it is not valid YAML"),
        ("keys: &a [*a]", "keys[0]: expected a mapping"),
        ("[" * 3_000, "it is not valid YAML"),
    ],
)
def test_a_wrong_file_is_explained(text: str, said: str) -> None:
    (fault,) = faults(text)
    assert fault.startswith(said), fault
    assert SECRET not in fault


def test_every_fault_is_told_at_once() -> None:
    found = faults(text_of({**ENTRY, "admin": 1, "priority": "x"}, {"id": "kb1"}))
    assert [fault.split(":")[0] for fault in found] == [
        "keys[0].admin",
        "keys[0].priority",
        "keys[1]",
        "keys[1]",
    ]


@pytest.mark.parametrize(
    ("other", "place"),
    [
        ({"id": "ka1", "name": "bob"}, "keys[1].id"),
        ({"id": "kb1", "name": "alice"}, "keys[1].name"),
        ({"id": "kb1", "name": "ka1"}, "keys[1].name"),
    ],
)
def test_names_and_ids_differ(other: dict[str, str], place: str) -> None:
    (fault,) = faults(text_of(ENTRY, {**ENTRY, **other}))
    assert fault.startswith(f"{place}: another key is called")


def test_an_error_keeps_nothing_of_what_was_read() -> None:
    for read in (
        lambda: parse(text_of({**ENTRY, "admin": 1})),
        lambda: parse(f"keys: *{ALICE}"),
        lambda: issue({"name": ALICE}),
    ):
        with pytest.raises(ConfigError) as caught:
            read()
        assert caught.value.__context__ is None
        assert caught.value.__cause__ is None


def test_a_repr_shows_no_hash() -> None:
    keyring = parse(text_of(ENTRY))
    for shown in (repr(keyring), str(keyring), f"{keyring.keys[0]} {keyring.keys[0]!r}"):
        assert "alice" in shown
        assert HASH not in shown


# A busy machine is no fault of the code.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

# -- any file ------------------------------------------------------------------------------------

_names = st.from_regex(r"[A-Za-z0-9._-]{1,20}", fullmatch=True)
_counts = st.integers(1, 2**31 - 1)
_entries = st.fixed_dictionaries(
    {
        "id": st.from_regex(r"k[a-z0-9]{1,12}", fullmatch=True),
        "name": _names,
        "sha256": st.binary(max_size=4).map(lambda raw: sha256(raw).hexdigest()),
    },
    optional={
        "models": st.lists(st.text(min_size=1), min_size=1),
        "expires": st.dates() | st.datetimes() | st.datetimes(timezones=st.just(UTC)),
        "admin": st.booleans(),
        "priority": st.integers(-(2**31), 2**31 - 1),
        "requests_per_minute": _counts,
        "tokens_per_minute": _counts,
        "concurrent_requests": _counts,
        "max_tokens": _counts,
    },
)
_files = st.lists(
    _entries, max_size=4, unique_by=(lambda one: one["id"], lambda one: one["name"])
).filter(lambda found: not {one["id"] for one in found} & {one["name"] for one in found})
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=8,
)


def parses_or_explains(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(parse(text), Keyring)


@patient
@given(st.text() | st.text("kesyid: []{}-&*!<'\"\n0a", max_size=60))
def test_any_text_is_keys_or_an_explained_error(text: str) -> None:
    parses_or_explains(text)


@patient
@given(_values)
def test_any_yaml_is_keys_or_an_explained_error(value: Any) -> None:
    parses_or_explains(yaml.safe_dump(value))


@patient
@given(_entries, st.sampled_from(sorted(Key.model_fields)), _values)
def test_any_value_of_a_field_is_a_key_or_an_explained_error(
    entry: dict[str, Any], field: str, value: Any
) -> None:
    parses_or_explains(text_of({**entry, field: value}))


@patient
@given(_files)
def test_what_is_written_reads_the_same(entries: list[dict[str, Any]]) -> None:
    keyring = parse(text_of(*entries))
    assert len(keyring.keys) == len(entries)
    assert parse(dump(keyring.keys)) == keyring


# -- find ----------------------------------------------------------------------------------------


def keyring_of(**changes: Any) -> tuple[Keyring, str]:
    """Two keys, and the text of the first."""
    key, text = issue({"name": "alice", **changes})
    other, _ = issue({"name": "bob"}, taken={key.id})
    return Keyring((key, other)), text


def test_a_key_is_found_by_its_text() -> None:
    keyring, text = keyring_of()
    found = keyring.find(text, NOW)
    assert isinstance(found, Key)
    assert found.name == "alice"


@pytest.mark.parametrize(
    ("presented", "refusal"),
    [
        (None, MISSING),
        ("", MALFORMED),
        ("sk-abc", MALFORMED),
        ("ns-ka1-short", MALFORMED),
        (f"{ALICE}\n", MALFORMED),
        (f"{ALICE}é", MALFORMED),
        (f"{ALICE}\ud800", MALFORMED),
        (f"ns-ka1-{'x' * 10_000}", MALFORMED),
        (ALICE, UNKNOWN),
    ],
)
def test_other_texts_are_refused(presented: str | None, refusal: Refused) -> None:
    keyring, _ = keyring_of()
    assert keyring.find(presented, NOW) == refusal
    assert refusal.status == 401


@patient
@given(st.integers(0, 42), st.sampled_from("abcXYZ019_-"))
def test_one_other_character_is_an_unknown_key(at: int, character: str) -> None:
    keyring, text = keyring_of()
    start, secret = text[:-43], text[-43:]
    wrong = start + secret[:at] + character + secret[at + 1 :]
    found = keyring.find(wrong, NOW)
    assert (found == UNKNOWN) is (wrong != text)


def test_an_unknown_id_costs_what_a_wrong_secret_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    keyring, text = keyring_of()
    compared = []

    def compare(left: str, right: str) -> bool:
        compared.append((len(left), len(right)))
        return left == right

    monkeypatch.setattr("serve_app.access.keyring.hmac.compare_digest", compare)
    for presented in (text, text[:-43] + "x" * 43, ALICE):
        keyring.find(presented, NOW)
    assert compared == [(64, 64)] * 3


def test_nobody_s_hash_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.access.keyring.digest", lambda _: "0" * 64)
    assert Keyring().find(ALICE, NOW) == UNKNOWN


def test_a_key_expires_at_its_very_instant() -> None:
    keyring, text = keyring_of(expires=NOW)
    found = keyring.find(text, NOW - timedelta(microseconds=1))
    assert isinstance(found, Key)
    assert keyring.find(text, NOW) == EXPIRED
    assert keyring.find(text, NOW + timedelta(days=1)) == EXPIRED
    # Who does not have the secret does not learn that there was a key.
    assert keyring.find(text[:-43] + "x" * 43, NOW) == UNKNOWN


def test_a_date_ends_at_its_first_second() -> None:
    keyring, text = keyring_of(expires=date(2027, 1, 1))
    end = datetime(2027, 1, 1, tzinfo=UTC)
    assert isinstance(keyring.find(text, end - timedelta(seconds=1)), Key)
    assert keyring.find(text, end) == EXPIRED


def test_keys_are_issued_with_32_random_bytes() -> None:
    made = {issue({"name": "alice"})[1] for _ in range(50)}
    assert len(made) == 50
    for text in made:
        assert KEY.fullmatch(text)
        assert len(text.split("-", 2)[2]) == 43


def test_an_id_that_is_taken_is_not_issued(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["00000001", "00000002"])
    monkeypatch.setattr("serve_app.access.keyring.secrets.token_hex", lambda _: next(drawn))
    key, text = issue({"name": "alice"}, taken={"k00000001"})
    assert key.id == "k00000002"
    assert text.startswith("ns-k00000002-")


@pytest.mark.parametrize(
    ("headers", "token"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"Authorization", b"bEARER   abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"authorization", b"Bearer")], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", b"abc")], None),
        ([(b"authorization", b"Bearer \xff\xfe")], "\xff\xfe"),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"api-key", b"abc")], "abc"),
        ([(b"api-key", b"c"), (b"x-api-key", b"b"), (b"authorization", b"Bearer a")], "a"),
        ([(b"authorization", b"Basic a"), (b"x-api-key", b"b")], "b"),
        ([(b"authorization", b"Bearer a"), (b"authorization", b"Bearer b")], "a"),
        ([(b"x-api-key", b"")], None),
    ],
)
def test_where_a_key_stands(headers: list[tuple[bytes, bytes]], token: str | None) -> None:
    assert bearer(headers) == token


# -- the file ------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(text_of(ENTRY))
    return path


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What `ray.serve` logs as an error while the test runs."""
    found: list[logging.LogRecord] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record)

    handler = Collect(logging.ERROR)
    key_file.logger.addHandler(handler)
    yield found
    key_file.logger.removeHandler(handler)


def names(file: KeyFile) -> list[str]:
    return [key.name for key in file.keyring.keys]


def replace(path: Path, text: str) -> None:
    """Another inode: what the clock's grain cannot hide."""
    fresh = path.with_suffix(".fresh")
    fresh.write_text(text)
    fresh.replace(path)


def test_nobody_has_a_key_before_the_file_is_read(path: Path) -> None:
    assert KeyFile(path).keyring.find(ALICE, NOW) == UNKNOWN


def test_a_file_is_read_when_it_changes_and_only_then(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = KeyFile(path)
    file.load()
    parsed = []
    monkeypatch.setattr(key_file, "parse", lambda *words: parsed.append(words) or parse(*words))
    assert [file.refresh() for _ in range(3)] == [False] * 3
    assert parsed == []
    path.write_text(text_of(ENTRY, {**ENTRY, "id": "kb1", "name": "bob"}))
    assert [file.refresh() for _ in range(3)] == [True, False, False]
    assert len(parsed) == 1
    assert names(file) == ["alice", "bob"]
    os.utime(path)
    assert not file.refresh()


def test_a_mistake_keeps_the_old_keys_and_is_logged_once(
    path: Path, errors: list[logging.LogRecord]
) -> None:
    file = KeyFile(path)
    file.load()
    broken = text_of({**ENTRY, "name": "carol", "expries": "2027-01-01", "sha256": ALICE})
    replace(path, broken)
    assert [file.refresh() for _ in range(3)] == [False] * 3
    replace(path, broken)  # the same once more
    assert not file.refresh()
    (record,) = errors
    said = record.getMessage()
    assert "did you mean 'expires'?" in said
    assert str(path) in said
    assert "\n" not in said
    assert SECRET not in said
    assert record.exc_info is None
    assert names(file) == ["alice"]
    assert isinstance(file.keyring.find(ALICE, NOW), Key)
    replace(path, text_of({**ENTRY, "name": "dave", "expries": "2028-01-01", "sha256": ALICE}))
    assert not file.refresh()
    assert len(errors) == 2  # another content, though it has the same words
    replace(path, text_of({**ENTRY, "name": "carol"}))
    assert file.refresh()
    assert names(file) == ["carol"]
    replace(path, broken)
    assert not file.refresh()
    assert len(errors) == 3


def test_a_file_that_is_gone_keeps_the_old_keys_and_is_logged_once(
    path: Path, errors: list[logging.LogRecord]
) -> None:
    file = KeyFile(path)
    file.load()
    aside = path.rename(path.with_suffix(".aside"))
    assert [file.refresh() for _ in range(3)] == [False] * 3
    assert [record.getMessage() for record in errors] == [
        f"API keys: {path}: cannot read it: No such file or directory; "
        "those read before stay in force"
    ]
    assert names(file) == ["alice"]
    aside.rename(path)
    assert not file.refresh()  # the same keys
    path.unlink()
    assert not file.refresh()
    assert len(errors) == 2


def test_a_symlink_is_swapped_as_kubernetes_does(tmp_path: Path) -> None:
    for version, name in (("1", "alice"), ("2", "robin")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(text_of({**ENTRY, "name": name}))
        os.utime(tmp_path / version / "keys.yaml", ns=(5, 5))
    (tmp_path / "..data").symlink_to("1")
    path = tmp_path / "keys.yaml"
    path.symlink_to("..data/keys.yaml")
    file = KeyFile(path)
    file.load()
    assert names(file) == ["alice"]
    (tmp_path / "fresh").symlink_to("2")
    (tmp_path / "fresh").replace(tmp_path / "..data")
    assert file.refresh()
    assert names(file) == ["robin"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "it is not a file"),
        (os.mkfifo, "it is not a file"),
        (lambda path: path.write_bytes(b"\xff"), "it is not UTF-8 text"),
        (lambda path: path.write_text("keys: ["), "it is not valid YAML"),
        (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "keys.yaml"
    make(path)
    with pytest.raises(ConfigError, match=said) as caught:
        KeyFile(path).load()
    assert str(path) in str(caught.value)
    assert len(caught.value.findings) == 1


def test_a_path_with_a_null_byte_is_explained() -> None:
    with pytest.raises(ConfigError, match="that is no path"):
        KeyFile("a\0b").load()


@pytest.mark.anyio
async def test_the_file_is_followed(path: Path) -> None:
    file = KeyFile(path)
    file.load()
    following = asyncio.create_task(file.follow(period_s=0.001))
    replace(path, "keys: [")
    await asyncio.sleep(0.02)
    replace(path, text_of({**ENTRY, "name": "bob"}))
    async with asyncio.timeout(30):
        while names(file) != ["bob"]:
            await asyncio.sleep(0.001)
    assert not following.done()
    following.cancel()

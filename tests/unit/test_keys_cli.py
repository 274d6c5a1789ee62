"""`neuron-serve keys`: a file that people and programs change, and a secret shown once."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from serve_app.access.key_file import KeyFile
from serve_app.access.keyring import EXPIRED, KEY, UNKNOWN, Key
from serve_app.cli.main import app


def cli(*words: str | Path, **env: str) -> Result:
    # In this process: a new one takes half a second. Exit is the one exception that may leave.
    done = CliRunner().invoke(app, ["keys", *map(str, words)], env={"COLUMNS": "120", **env})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def flat(text: str) -> str:
    """Without the frame that is drawn around errors."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def issue(path: Path, *words: str) -> str:
    done = cli("new", "--file", path, *words)
    assert done.exit_code == 0, done.stderr
    assert KEY.fullmatch(done.stdout.removesuffix("\n")), done.stdout
    return done.stdout.strip()


def find(path: Path, text: str, now: datetime | None = None) -> object:
    return KeyFile(path).load().find(text, now or datetime.now(UTC))


def test_round_trip(path: Path) -> None:
    alice = issue(path, "--name", "alice")
    bob = issue(path, "--name", "bob")
    found = find(path, alice)
    assert isinstance(found, Key)
    assert (found.name, found.models, found.quota.unlimited) == ("alice", None, True)
    listed = json.loads(cli("list", "--file", path, "--json").stdout)
    assert [entry["name"] for entry in listed] == ["alice", "bob"]
    done = cli("revoke", "--file", path, "alice")
    assert (done.exit_code, done.stdout) == (0, "")
    assert find(path, alice) == UNKNOWN
    assert isinstance(find(path, bob), Key)
    assert cli("revoke", "--file", path, listed[1]["id"]).exit_code == 0
    assert KeyFile(path).load().keys == ()
    assert isinstance(find(path, issue(path, "--name", "alice")), Key)


def test_every_option(path: Path) -> None:
    text = issue(
        path,
        *("--name", "alice", "--model", "llama", "--model", "qwen", "--expires", "2999-01-01"),
        *("--admin", "--priority", "-2", "--requests-per-minute", "60"),
        *("--tokens-per-minute", "10000", "--concurrent-requests", "4", "--max-tokens", "1024"),
    )
    found = find(path, text)
    assert isinstance(found, Key)
    assert found.model_dump(exclude={"id", "sha256"}) == {
        "name": "alice",
        "models": ("llama", "qwen"),
        "expires": datetime(2999, 1, 1, tzinfo=UTC),
        "admin": True,
        "priority": -2,
        "requests_per_minute": 60,
        "tokens_per_minute": 10000,
        "concurrent_requests": 4,
        "max_tokens": 1024,
    }
    assert "expires: 2999-01-01\n" in path.read_text()


def test_days(path: Path) -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    text = issue(path, "--name", "alice", "--expires", "30d")
    found = find(path, text)
    assert isinstance(found, Key)
    assert found.expires is not None
    assert timedelta(days=30) <= found.expires - before < timedelta(days=30, minutes=5)
    assert find(path, text, found.expires) == EXPIRED


def test_the_file_comes_from_the_environment(path: Path) -> None:
    assert cli("new", "--name", "alice", NEURON_SERVE_KEYS=str(path)).exit_code == 0
    assert "alice" in cli("list", NEURON_SERVE_KEYS=str(path)).stdout
    done = cli("list", NEURON_SERVE_KEYS="")
    assert (done.exit_code, "--file" in done.stderr) == (2, True)


def test_only_new_shows_the_secret_and_only_on_stdout(path: Path) -> None:
    created = cli("new", "--file", path, "--name", "alice")
    text = created.stdout.strip()
    secret, hashed = text.split("-", 2)[2], sha256(text.encode()).hexdigest()
    shown = [
        created.stderr,
        path.read_text().replace(hashed, ""),
        *(file for file in path.parent.iterdir() if file != path),
    ]
    for words in (
        ["list"],
        ["list", "--json"],
        ["new", "--name", "alice"],
        ["new", "--name", text],
        ["new", "--name", "b", "--expires", text],
        ["revoke", text.replace("k", "j", 1)],
        ["revoke", f"{text}~"],
        ["revoke", text],
    ):
        done = cli(*words, "--file", path)
        shown += [done.stdout, done.stderr]
    for said in shown:
        content = said.read_text() if isinstance(said, Path) else said
        assert secret not in content
        assert hashed not in content
    # The last of these found the key by its text.
    assert KeyFile(path).load().keys == ()


def test_a_table_of_keys(path: Path) -> None:
    issue(path, "--name", "alice", "--model", "[bold]m", "--tokens-per-minute", "100", "--admin")
    entry = path.read_text().split("keys:\n")[1]
    old = entry.replace("alice", "old").replace("id: k", "id: x") + "  expires: 2001-02-03\n"
    path.write_text(f"keys:\n{entry}{old}")
    done = cli("list", "--file", path)
    title, first, second, *_ = [line for line in done.stdout.splitlines() if "│" not in line]
    assert title.split() == ["name", "id", "models", "expires", "limits", "state"]
    assert re.match(r"alice +k\w{8} +\[bold\]m +never +admin +good", first), done.stdout
    assert "tokens per minute 100" in done.stdout
    assert re.search(r"old +x\w{8} +\[bold\]m +2001-02-03 00:00 +admin +expired", done.stdout)
    assert second.split() == ["tokens", "per", "minute", "100"]
    states = [key["state"] for key in json.loads(cli("list", "--json", "--file", path).stdout)]
    assert states == ["good", "expired"]


def test_a_long_name_is_shown_whole(path: Path) -> None:
    issue(path, "--name", "a" * 64, "--model", "m" * 64)
    shown = cli("list", "--file", path, COLUMNS="80").stdout
    assert (shown.count("a"), shown.count("m")) >= (64, 64)
    assert "…" not in shown


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["new", "--name", "alice"], 1, "has a key called 'alice' -> revoke it, or choose"),
        (["new", "--name", "a b"], 2, "name: expected 1 to 64 letters"),
        (["new"], 2, "Missing option '--name'"),
        (["new", "--name", "b", "--model", ""], 2, "models: expected a list of names"),
        (["new", "--name", "b", "--expires", "soon"], 2, "as in 30d, or a date"),
        (["new", "--name", "b", "--expires", "99999999999d"], 2, "as in 30d, or a date"),
        (["new", "--name", "b", "--expires", "0d"], 2, "in the past"),
        (["new", "--name", "b", "--expires", "2001-01-01"], 2, "in the past"),
        (["new", "--name", "b", "--max-tokens", "0"], 2, "--max-tokens"),
        (["new", "--name", "b", "--priority", "99999999999"], 2, "priority: expected a whole"),
        (["revoke", "alicf"], 1, "has no such key -> did you mean 'alice'?"),
        (["revoke", "zzz"], 1, "has no such key -> see neuron-serve keys list"),
        (["revoke"], 2, "Missing argument"),
    ],
)
def test_bad_words(path: Path, words: list[str], code: int, said: str) -> None:
    issue(path, "--name", "alice")
    before = path.read_bytes()
    done = cli(words[0], "--file", path, *words[1:])
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in flat(done.stderr), done.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("file", "words", "code", "said"),
    [
        ("none.yaml", ["list"], 2, "cannot read it: No such file"),
        ("none.yaml", ["revoke", "alice"], 2, "cannot read it: No such file"),
        ("none/keys.yaml", ["new", "--name", "a"], 1, "cannot write"),
        (".", ["new", "--name", "a"], 2, "is a directory"),
        ("a" * 300, ["new", "--name", "a"], 1, "cannot write"),
        ("wrong.yaml", ["new", "--name", "a"], 2, "wrong.yaml: keys[0]: unknown key 'nome'"),
        ("wrong.yaml", ["list"], 2, "wrong.yaml: keys[0]: unknown key 'nome'"),
        ("empty.yaml", ["new", "--name", "a"], 2, "expected `keys:` and a list"),
        ("binary.yaml", ["list"], 2, "it is not UTF-8 text"),
    ],
)
def test_bad_files(tmp_path: Path, file: str, words: list[str], code: int, said: str) -> None:
    (tmp_path / "wrong.yaml").write_text("keys: [{nome: alice}]")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "binary.yaml").write_bytes(b"\xff")
    done = cli(words[0], "--file", tmp_path / file, *words[1:])
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in flat(done.stderr), done.stderr


def test_a_new_file_is_its_owner_s_and_an_old_one_keeps_its_mode(path: Path) -> None:
    issue(path, "--name", "alice")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    issue(path, "--name", "bob")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.yaml.lock", "keys.yaml"]


def test_a_symlink_stays_one(tmp_path: Path, path: Path) -> None:
    (tmp_path / "real.yaml").write_text("keys: []")
    path.symlink_to("real.yaml")
    text = issue(path, "--name", "alice")
    assert path.is_symlink()
    assert isinstance(find(tmp_path / "real.yaml", text), Key)


def test_lost_comments_are_told(path: Path) -> None:
    path.write_text("# ours\nkeys: []\n")
    lost = f"{path}: its comments are not kept"
    assert lost in cli("new", "--file", path, "--name", "alice").stderr
    assert lost not in cli("new", "--file", path, "--name", "bob").stderr


def test_a_write_that_fails_leaves_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issue(path, "--name", "alice")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = cli("new", "--file", path, "--name", "bob")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"neuron-serve: cannot write {path}: No space left on device\n"
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir()) == [".keys.yaml.lock", "keys.yaml"]


def test_processes_that_add_at_once_lose_none(path: Path) -> None:
    program = (
        "import sys\n"
        "from serve_app.cli.main import app\n"
        "print(flush=True)\n"
        "sys.stdin.readline()\n"
        "for number in range(12):\n"
        "    words = ['keys', 'new', '--file', sys.argv[1], '--name', f'{sys.argv[2]}{number}']\n"
        "    app(words, standalone_mode=False)\n"
    )
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", program, path, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("a", "b")
    ]
    for writer in writers:  # both begin when both are ready
        assert writer.stdout is not None
        writer.stdout.readline()
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    texts = []
    for writer in writers:
        out, said = writer.communicate(timeout=120)
        assert writer.returncode == 0, said
        texts += out.split()
    assert {key.name for key in KeyFile(path).load().keys} == {
        f"{name}{number}" for name in "ab" for number in range(12)
    }
    assert len(texts) == 24
    assert all(isinstance(find(path, text), Key) for text in texts)


def test_help_teaches_each() -> None:
    for command in ("new", "list", "revoke"):
        assert f"Example: neuron-serve keys {command}" in cli(command, "--help").stdout

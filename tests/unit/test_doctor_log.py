"""Known failures: every entry of the table against excerpts of logs, and logs that are well."""

from __future__ import annotations

import gzip
import json
import string
import subprocess
import sys
from pathlib import Path

import pytest

from serve_app.doctor.known import compile_words, failures
from serve_app.doctor.log import Reader, Report, blocks
from serve_app.doctor.mask import clean

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).with_name("data") / "doctor"


def excerpts() -> list[tuple[str, set[str], str, bytes]]:
    """Place, the failures that it holds, its source, its lines."""
    found = []
    for file in sorted(DATA.glob("*.log")):
        for section in file.read_text().split("### ")[1:]:
            head, _, text = section.partition("\n")
            ids, _, source = head.partition(" | ")
            found.append((f"{file.stem}:{ids}", set(ids.split()), source, text.encode()))
    return found


EXCERPTS = excerpts()


def read(raw: bytes) -> Report:
    reader = Reader()
    reader.read(raw.removesuffix(b"\n"))
    return reader.report


@pytest.mark.parametrize(("ids", "source", "text"), [e[1:] for e in EXCERPTS], ids=lambda v: "")
def test_an_excerpt_holds_its_failures_and_no_other(
    ids: set[str], source: str, text: bytes
) -> None:
    assert set(read(text).found) == ids
    assert source


def test_every_failure_and_each_of_its_words_has_an_excerpt() -> None:
    lines = {(i, line) for _, ids, _, text in EXCERPTS for i in ids for line in text.split(b"\n")}
    lacking = [
        (failure.id, words.expression)
        for failure in failures()
        for words in failure.words
        if not any(
            i == failure.id and words.needle in line and words.pattern.search(clean(line))
            for i, line in lines
        )
    ]
    assert lacking == []


def test_the_table() -> None:
    ids = [failure.id for failure in failures()]
    assert len(ids) == len(set(ids)) >= 60
    for failure in failures():
        assert failure.source
        assert not failure.cause.endswith("."), failure.id


def test_no_answer_lacks_what_its_words_hold() -> None:
    for place, _, _, text in EXCERPTS:
        for found in read(text).found.values():
            texts = found.failure.cause + found.failure.mend
            asked = {name for _, name, _, _ in string.Formatter().parse(texts) if name}
            assert asked <= found.groups.keys(), place


@pytest.mark.parametrize("file", sorted((DATA / "healthy").iterdir()), ids=lambda f: f.name)
def test_nothing_is_found_in_a_healthy_log(file: Path) -> None:
    assert read(file.read_bytes()).found == {}


def test_causes_come_first_with_line_count_and_what_was_held() -> None:
    line = b"ValueError: Total number of attention heads (14) must be divisible by tensor parallel"
    raw = b"INFO fine\nEngineCore failed to start.\n" + b"\n".join([line + b" size (4)."] * 412)
    report = read(raw)
    (cause,) = report.causes
    assert (cause.failure.id, cause.line, cause.count) == ("heads", 3, 412)
    assert cause.cause == "14 attention heads cannot be split over 4 ranks"
    assert [found.failure.id for found in report.consequences] == ["engine-failed"]
    assert report.lines == 414


def test_a_line_of_source_in_a_traceback_is_no_failure() -> None:
    raw = b"""Traceback (most recent call last):
  File "engine.py", line 114, in check
    raise RuntimeError("NIXL is not available")
RuntimeError: NIXL is not available"""
    assert read(raw).causes[0].line == 4


def test_same_shape_other_code() -> None:
    """Lines that only differ in what shapes leave out are told apart."""
    report = read(b"[NCC_EVRF007] x\n[NCC_EVRF009] x\nid=5\nid=6\nid=5")
    assert list(report.found) == ["compile-too-large", "compile-device-memory"]


def test_the_last_error_of_an_unknown_log() -> None:
    report = read(
        b"ERROR one\nTraceback (most recent call last):\nmy.OwnError: HF_TOKEN=hf_abc12345\nINFO b"
    )
    assert report.found == {}
    assert report.last_error == (3, "my.OwnError: HF_TOKEN=***")


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("hf_abcdefghijklmnop", "hf_***"),
        ("key sk-proj-abc_defghijk", "key sk-***"),
        ("Authorization: Bearer abc.def-123456", None),
        ("AKIAIOSFODNN7EXAMPLE", "AKIA***"),
        ("aws_secret_access_key=wJalrXUtnFEMI", None),
        ("redis://user:hunter22@host:6379/0", "redis://***@host:6379/0"),
        ("https://b.s3/x?X-Amz-Signature=deadbeef&a=1", "https://b.s3/x?X-Amz-Signature=***&a=1"),
        ('{"api_key": "abcdefgh"}', '{"api_key": "***"}'),
        ("ns-0123456789abcdef-qwertyuiop", "ns-***"),
        ("eyJhbGciOiJIUzI1.eyJzdWIi.c2ln", "eyJ***"),
        ("\x1b[31mERROR\x1b[0m \x07bell", "ERROR bell"),
        ("bos_token: <s>, 12 tokens/s, token 5", "bos_token: <s>, 12 tokens/s, token 5"),
    ],
)
def test_secrets_and_escape_sequences_are_not_shown(raw: str, shown: str | None) -> None:
    text = clean(raw.encode())
    for secret in ("abc.def", "wJalr", "hunter22", "abcdefgh", "qwerty", "EXAMPLE", "deadbeef"):
        assert secret not in text
    if shown is not None:
        assert text == shown


def test_secrets_of_a_found_line_are_not_shown() -> None:
    text = b"HF_TOKEN=hf_abcdefghijklmnop You are trying to access a gated repo. Bearer qwertyuiop"
    report = read(text)
    assert "abcdef" not in report.causes[0].text
    assert "qwerty" not in report.causes[0].text


class Trickle:
    """A file that gives its bytes a few at a time."""

    def __init__(self, raw: bytes, size: int) -> None:
        self._raw, self._size = raw, size

    def read(self, _: int = -1) -> bytes:
        part, self._raw = self._raw[: self._size], self._raw[self._size :]
        return part


@pytest.mark.parametrize("size", [1, 7, 100])
def test_lines_are_whole_however_the_bytes_come(size: int) -> None:
    raw = b"\xff\xfe broken\n\n[NCC_EVRF007] x\r\nlast, no newline: NIXL is not available"
    reader = Reader()
    for block in blocks(Trickle(raw, size)):  # type: ignore[arg-type]
        reader.read(block)
    assert {i: found.line for i, found in reader.report.found.items()} == {
        "compile-too-large": 3,
        "nixl-missing": 4,
    }


def test_a_line_without_end_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.doctor.log._LONGEST_LINE", 1000)
    pieces = list(blocks(Trickle(b"x" * 5500, 100)))  # type: ignore[arg-type]
    assert max(map(len, pieces)) <= 1100
    assert sum(map(len, pieces)) == 5500


def test_the_memory_for_shapes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.doctor.log._SHAPES", 10)
    reader = Reader()
    reader.read(b"\n".join(b"g" * count for count in range(100)) + b"\nNIXL is not available")
    assert len(reader._kinds) <= 10
    assert list(reader.report.found) == ["nixl-missing"]


def test_words() -> None:
    words = compile_words("size ({bytes} B) of [{kind:a|b}] {} ends {last}")
    assert words.needle == b" B) of ["
    match = words.pattern.search("the size (12 B) of [b] x ends here now")
    assert match is not None
    assert match.groupdict() == {"bytes": "12", "kind": "b", "last": "here"}
    with pytest.raises(ValueError, match="nothing literal"):
        compile_words("{a} = {b}")


def doctor(*words: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "serve_app", "doctor", *words]
    return subprocess.run(command, capture_output=True, input=stdin, cwd=ROOT, timeout=60)


def test_the_command(tmp_path: Path) -> None:
    packed = tmp_path / "engine.log.gz"
    packed.write_bytes(gzip.compress(b"fine\nNIXL is not available\nEngineCore failed to start."))
    done = doctor(str(packed))
    assert done.returncode == 1, done.stderr
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "line 2: nixl-missing"
    assert lines[-2].startswith("and then line 3: engine-failed")

    damaged = tmp_path / "cut.gz"
    damaged.write_bytes(packed.read_bytes()[:-9])
    assert b"cut off or damaged" in doctor(str(damaged)).stdout

    report = json.loads(doctor("-", "--json", stdin=b"INFO ok\nERROR no\n").stdout)
    assert report["found"] == []
    assert report["last_error"] == {"line": 2, "text": "ERROR no"}


def test_the_command_on_what_is_no_log(tmp_path: Path) -> None:
    for name in (str(tmp_path), str(tmp_path / "none.log")):
        done = doctor(name)
        assert done.returncode == 2
        assert done.stderr.decode().count("\n") == 1
        assert b" -> give" in done.stderr
    empty = tmp_path / "empty.log"
    empty.touch()
    done = doctor(str(empty))
    assert (done.returncode, done.stderr) == (0, b"")


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/doctor.md").read_bytes() == doctor("--known").stdout


def test_no_ray_torch_or_vllm_for_a_log() -> None:
    code = (
        "import sys; import serve_app.doctor.page; from serve_app.doctor.log import Reader;"
        "Reader(); print({'ray', 'torch', 'vllm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr

"""Compile jobs run with the stand-in compiler: progress, failure, stops, the kernel fall-back."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from serve_app.artifacts import manifest, process_group
from serve_app.artifacts.compile_log import Evidence, Progress, Tracker
from serve_app.artifacts.runner import FALL_BACK, CompileError, compile_into, run_job
from serve_app.artifacts.verdict import Verdict, judge
from serve_app.config import ConfigError
from tests.unit.compile_process import Application

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
EVERY_KERNEL = dict.fromkeys((flag for group in FALL_BACK for flag in group), True)
NO_SPACE = "OSError: [Errno 28] No space left on device"
SECRET = "hf_AbCdEfGhIjKlMnOp"

pytestmark = pytest.mark.timeout(40)


class Compile:
    """A configuration on a machine whose inference_demo is the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = folder / "model"
        self.model.mkdir()
        known = json.loads((ROOT / "serve_app/neuron/model_facts.json").read_text())
        facts = next(entry for entry in known if "Qwen/Qwen3-8B" in entry["names"])
        (self.model / "config.json").write_text(json.dumps(facts["config"]))
        self.directory = folder / "artifacts" / "qwen"
        self.log = folder / "logs" / "compile.log"
        self.reports: list[Progress] = []
        self.configure()

    def configure(self, env: dict[str, str] | None = None, **neuron: Any) -> Path:
        config = yaml.safe_load((ROOT / "configs/qwen3-8b-trn2.yaml").read_text())
        args = config["applications"][0]["args"]
        override = args["engine"]["additional_config"]["override_neuron_config"]
        override.update(save_sharded_checkpoint=True, **neuron)
        args["artifacts"]["path"] = str(self.directory)
        args["env"] = env or {}
        self.config = self.folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.application = Application(self.config, self.model)
        return self.config

    def run(
        self,
        *,
        fall_back: bool = False,
        seal: Callable[[Path, tuple[str, ...]], object] | None = None,
        report: Callable[[Progress], None] | None = None,
    ) -> tuple[str, ...]:
        return compile_into(
            self.application.build,
            self.directory,
            seal or self.application.seal,
            self.log,
            report or self.reports.append,
            fall_back,
        )

    def start(self, *more: str) -> subprocess.Popen[str]:
        """The same in a process of its own, which a test can stop."""
        script = HERE / "compile_process.py"
        words = [self.config, self.model, self.directory, self.log, 1, *more]
        return subprocess.Popen(
            [sys.executable, str(script), *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def compiling(self) -> None:
        """Wait until the compiler works."""
        wait_until(lambda: self.log.exists() and "DGE ON" in self.log.read_text())

    def compilers(self) -> list[psutil.Process]:
        """Those that live, inference_demo's own process among them."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                if str(HERE / "stand_in_compiler.py") in words and str(self.model) in words:
                    found.append(process)
        return found

    def drafts(self) -> list[str]:
        return [path.name for path in self.directory.parent.glob(".*")]

    def written(self, process: int) -> bool:
        """Whether the compiler of that process has written its last file."""
        return any(self.directory.parent.glob(f".*-{process}@*/weights/tp7_*"))

    def tries(self) -> int:
        return len(list(self.log.parent.iterdir()))


@pytest.fixture
def compiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compile:
    monkeypatch.setattr(process_group, "GRACE", 1.0)
    command = tmp_path / "bin" / "inference_demo"
    command.parent.mkdir()
    command.write_text(
        f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" '
        f'"{HERE / "stand_in_compiler.py"}" "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("STAND_IN_")]:
        monkeypatch.delenv(name)
    return Compile(tmp_path)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def turn(**knobs: object) -> None:
        for name, value in knobs.items():
            monkeypatch.setenv(f"STAND_IN_{name.upper()}", str(value))

    return turn


def wait_until(holds: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def evidence(lines: Iterable[str]) -> Evidence:
    read = Evidence()
    for line in lines:
        read.read(line)
    return read


# What is compiled


def test_what_is_compiled_is_whole_and_serves_the_configuration(compiling: Compile) -> None:
    assert compiling.run() == ()
    found = manifest.read(compiling.directory)
    assert found is not None
    assert found.weights_in_artifact
    assert len(found.files) == 2 + 8
    assert manifest.verify(compiling.directory, found, deep=True) == []
    judgement = judge(compiling.directory, compiling.application.recipe)
    assert judgement is not None
    assert judgement.verdict is Verdict.USABLE, str(judgement)
    assert compiling.drafts() == []


def test_a_directory_with_content_is_kept(compiling: Compile) -> None:
    compiling.directory.mkdir(parents=True)
    compiling.run()  # an empty one is filled
    before = manifest.read(compiling.directory)
    compiling.log.unlink()
    with pytest.raises(CompileError, match=r"there is something in .*/qwen already -> "):
        compiling.run()
    assert manifest.read(compiling.directory) == before
    assert not compiling.log.exists()  # it cost no compile


def test_a_directory_that_is_filled_meanwhile_and_the_new_result_are_kept(
    compiling: Compile,
) -> None:
    def fill(progress: Progress) -> None:
        compiling.directory.mkdir(exist_ok=True)
        (compiling.directory / "other").write_text("someone else's")

    with pytest.raises(manifest.ArtifactError, match="what is compiled now is in") as caught:
        compiling.run(report=fill)
    assert [path.name for path in compiling.directory.iterdir()] == ["other"]
    kept = compiling.directory.with_name(f"qwen.{os.getpid()}")
    assert str(kept) in str(caught.value)
    found = manifest.read(kept)
    assert found is not None
    assert manifest.verify(kept, found, deep=True) == []


# Progress


def test_progress_by_submodel_and_bucket(compiling: Compile) -> None:
    compiling.run()
    reports = compiling.reports
    assert {report.submodel for report in reports} == {
        "context_encoding_model",
        "token_generation_model",
    }
    traced = [report for report in reports if "Finished generating HLO" in report.line]
    assert [(report.bucket, report.buckets) for report in traced] == [
        (bucket, 8) for _ in range(2) for bucket in range(1, 9)
    ]
    called = [report for report in reports if "Call compiler" in report.line]
    assert (called[0].submodel, called[0].bucket) == ("token_generation_model", 1)
    assert len({(report.submodel, report.bucket) for report in called}) == 16
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert sorted(set(done)) == list(range(17))
    assert (reports[-1].done, reports[-1].total) == (16, 16)
    elapsed = [report.elapsed for report in reports]
    assert elapsed == sorted(elapsed)
    assert 0 < elapsed[0] < elapsed[-1]


def test_buckets_from_the_cache_count(compiling: Compile, stand_in: Callable[..., None]) -> None:
    stand_in(cached=1)
    compiling.run()
    cached = [report.done for report in compiling.reports if "Using a cached" in report.line]
    assert cached == list(range(1, 17))


def test_time_goes_on_while_the_compiler_says_nothing(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    stand_in(hang=2.6)
    compiling.run()
    # The last line before it stays, and is not one that tells progress.
    silent = [report.elapsed for report in compiling.reports if "DGE ON" in report.line]
    silent = [elapsed for elapsed in silent if elapsed < silent[0] + 2.6]
    assert len(silent) >= 2
    assert all(0.5 < after - before < 1.3 for before, after in pairwise(silent))


@pytest.mark.parametrize(
    "prefix", ["", "(EngineCore pid=71) INFO 11-20 09:00:01 [x.py:1] ", "....."]
)
def test_lines_are_read_behind_any_prefix(prefix: str) -> None:
    tracker = Tracker()
    work = "/scratch/x/tkg/_tp0_bk1/model.MODULE_1a+2b"
    for line, tells in [
        ("INFO:Neuron:Generating 2 hlos for key: tkg", True),
        ("WARNING: something about 2 hlos", False),
        ("", False),
        (f"Call compiler with cmd: neuronx-cc compile {work}.hlo_module.pb --output x", True),
        # a small graph of torch's own
        ("Compilation Successfully Completed for model.MODULE_9f+0.hlo_module.pb", True),
    ]:
        assert tracker.read(prefix + line) is tells
    assert tracker.progress(1.5, "x") == Progress("tkg", 2, 2, 0, 2, 1.5, "x")
    tracker.read(f"{prefix}Compilation Successfully Completed for model.MODULE_1a+2b.hlo_module.pb")
    assert tracker.progress(0, "").done == 1
    tracker.read(prefix + "Finished Compilation for all HLOs in 49.70 seconds")
    assert tracker.progress(0, "").done == 2


def test_the_priority_bucket_counts_once() -> None:
    for told in (
        [
            "Call compiler with cmd: neuronx-cc /w/tkg/_tp0_bk0/model.MODULE_1+a.hlo_module.pb",
            "Compilation Successfully Completed for model.MODULE_1+a.hlo_module.pb",
        ],
        ["Using a cached neff at /cache/MODULE_1+a/model.neff"],
        [],
    ):
        tracker = Tracker()
        for line in [
            "Generating 3 hlos for key: tkg",
            "'tkg' is the priority model with bucket rank 0",
            *told,
            "Done compilation for the priority HLO in 45.15 seconds",
        ]:
            tracker.read(line)
        assert tracker.progress(0, "").done == 1


# Failure


def test_a_failure_is_one_line_and_the_lines_that_matter(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    stand_in(refuses="fused_qkv")
    with pytest.raises(CompileError) as caught:
        compiling.run()
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("inference_demo ended with exit code 1: [NCC_IXCG856] MATCH_REPLACE8 ")
    assert " -> " in text
    assert f"(log: {compiling.log})" in text
    assert len(caught.value.tail) == 2
    assert "[ERROR] [NCC_IXCG856]" in caught.value.tail[0]
    assert caught.value.tail[1] == "RuntimeError: Compilation failure"
    assert not compiling.directory.exists()
    assert compiling.drafts() == []


def test_without_errors_in_the_log_its_last_lines_are_shown(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    stand_in(says="goodbye", exit=3)
    with pytest.raises(CompileError, match="exit code 3: goodbye -> read the log") as caught:
        compiling.run(fall_back=True)
    assert len(caught.value.tail) == 15
    assert caught.value.tail[-1] == "goodbye"
    assert compiling.tries() == 1


def test_a_long_stack_does_not_hide_the_error() -> None:
    said = ["2026-06-15T12:11:12Z ERROR 85 [neuronx-cc]: Error message: too deep"]
    said += [
        f'2026-06-15T12:11:12Z ERROR 85 [neuronx-cc]:   File "x.py", line {n}' for n in range(99)
    ]
    said += ["last words"]
    assert evidence(said).tail() == said[:1]


def test_a_traceback_behind_a_prefix_ends_with_its_error() -> None:
    prefix = "(EngineCore pid=7) "
    said = [
        "before",
        f"{prefix}Traceback (most recent call last):",
        f'{prefix}  File "/x/nki/attention.py", line 3, in f',
        f"{prefix}",
        f"{prefix}    assert rows <= 128",
        f"{prefix}AssertionError",
        "after",
    ]
    assert evidence(said).tail() == ["AssertionError"]
    assert evidence(said).cause()[0].refused


def test_success_without_a_result_is_a_failure(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    stand_in(leaves_out="model.pt")
    with pytest.raises(CompileError, match=r"ended without a result: model\.pt is not"):
        compiling.run()
    assert not compiling.directory.exists()


def test_a_compiler_that_is_not_installed(
    compiling: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    with pytest.raises(CompileError, match="inference_demo is not installed here -> "):
        compiling.run(fall_back=True)
    assert compiling.tries() == 1


def test_a_full_disk(compiling: Compile, stand_in: Callable[..., None]) -> None:
    stand_in(full=1)
    with pytest.raises(CompileError, match=r"No space left on device -> free space") as caught:
        compiling.run(fall_back=True)
    assert caught.value.tail == [NO_SPACE]
    assert compiling.tries() == 1
    assert not compiling.directory.exists()
    assert compiling.drafts() == []


def test_a_disk_that_is_full_when_the_manifest_is_written(compiling: Compile) -> None:
    def seal(draft: Path, dropped: tuple[str, ...]) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"0")

    with pytest.raises(CompileError, match="No space left on device -> free space"):
        compiling.run(seal=seal)
    assert not compiling.directory.exists()
    assert compiling.drafts() == []


def test_a_log_that_cannot_be_written_ends_the_compile(compiling: Compile) -> None:
    job = compiling.application.build(str(compiling.directory), ())
    with pytest.raises(CompileError, match="cannot write the log /dev/full: No space left"):
        run_job(job, Path("/dev/full"), compiling.reports.append)
    assert compiling.compilers() == []


def test_secrets_are_in_no_log_and_no_error(
    compiling: Compile, stand_in: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling.configure(env={"HF_TOKEN": "${HF_TOKEN}"})
    stand_in(refuses="fused_qkv", tells="HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    with pytest.raises(CompileError) as caught:
        compiling.run()
    log = compiling.log.read_text()
    assert "HF_TOKEN" in log.splitlines()[1]
    assert "RuntimeError: refused with ***" in log  # the compiler had it
    for text in (log, str(caught.value), repr(caught.value), *caught.value.tail):
        assert SECRET not in text
    assert all(SECRET not in report.line for report in compiling.reports)


def test_a_secret_that_is_not_set_is_told_before_the_start(
    compiling: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling.configure(env={"HF_TOKEN": "${HF_TOKEN}"})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="HF_TOKEN is not set"):
        compiling.run()
    assert not compiling.log.exists()


# Stops


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_compiler_and_leaves_nothing(
    compiling: Compile, stand_in: Callable[..., None], number: signal.Signals
) -> None:
    stand_in(hang=60)
    with compiling.start() as process:
        compiling.compiling()
        assert len(compiling.compilers()) == 2
        assert len(compiling.drafts()) == 1
        process.send_signal(number)
        process.communicate(timeout=5)
    assert process.returncode == -number
    assert compiling.compilers() == []
    assert not compiling.directory.exists()
    assert compiling.drafts() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_compiler_that_ignores_sigterm_is_killed(
    compiling: Compile, stand_in: Callable[..., None], number: signal.Signals
) -> None:
    stand_in(hang=60, ignores=1)
    with compiling.start() as process:
        compiling.compiling()
        assert len(compiling.compilers()) == 2
        process.send_signal(number)
        wait_until(lambda: len(compiling.compilers()) == 1, 1)
        process.communicate(timeout=8)
    wait_until(lambda: not compiling.compilers(), 5)
    assert not compiling.directory.exists()


def test_killed_at_any_point_the_directory_is_whole_or_absent(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    stand_in(delay=0.003)
    begin = time.monotonic()
    compiling.run()
    length = time.monotonic() - begin
    shutil.rmtree(compiling.directory)
    chance = random.Random()
    halfway = 0
    with compiling.start("forks") as server:
        assert server.stdin is not None
        assert server.stdout is not None
        for kill in range(20):
            print(kill, file=server.stdin, flush=True)
            child = int(server.stdout.readline())
            if kill % 2:
                wait_until(lambda child=child: compiling.written(child))
                time.sleep(chance.uniform(0, 0.4))
            else:
                time.sleep(chance.uniform(0, length))
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            wait_until(lambda child=child: not psutil.pid_exists(child))
            halfway += bool(compiling.drafts())
            if compiling.directory.exists():
                found = manifest.read(compiling.directory)
                assert found is not None
                assert manifest.verify(compiling.directory, found, deep=True) == []
                shutil.rmtree(compiling.directory)
        server.stdin.close()
    assert halfway > 5
    wait_until(lambda: not compiling.compilers(), 5)
    compiling.run()
    assert compiling.drafts() == []
    found = manifest.read(compiling.directory)
    assert found is not None
    assert manifest.verify(compiling.directory, found, deep=True) == []


def test_drafts_of_the_dead_go_and_those_of_the_living_stay(compiling: Compile) -> None:
    host = os.uname().nodename
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    drafts = {
        f".qwen.draft-{dead.pid}@{host}": False,
        f".qwen.draft-{os.getpid()}@{host}": False,  # of a process that had our number before
        f".qwen.draft-{os.getppid()}@{host}": True,
        f".qwen.draft-{dead.pid}@elsewhere": True,
        ".qwen.draft-1@long-gone": False,
        f".qwen2.draft-{dead.pid}@{host}": True,
    }
    for name in drafts:
        draft = compiling.directory.with_name(name)
        draft.mkdir(parents=True)
        (draft / "half").write_text("of a model")
    long_ago = time.time() - 3 * 24 * 3600
    gone = draft.with_name(".qwen.draft-1@long-gone")
    for path in (gone / "half", gone):
        os.utime(path, (long_ago, long_ago))
    compiling.run()
    assert sorted(compiling.drafts()) == sorted(name for name, stays in drafts.items() if stays)
    assert not (compiling.directory / "half").exists()


# The kernel fall-back


def test_kernels_are_given_up_in_order_until_the_compiler_takes_it(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    compiling.configure(**EVERY_KERNEL)
    stand_in(refuses="fused_qkv")
    dropped = compiling.run(fall_back=True)
    assert sorted(dropped) == sorted(EVERY_KERNEL)
    lines = [report.line for report in compiling.reports if "again without" in report.line]
    assert lines == [
        f"the compiler refused: again without {', '.join(sorted(group))}" for group in FALL_BACK
    ]
    names = ["compile.log", *(f"compile.log.{number}" for number in range(2, 8))]
    assert sorted(path.name for path in compiling.log.parent.iterdir()) == names
    assert "NCC_IXCG856" in compiling.log.read_text()
    assert "NCC_IXCG856" not in compiling.log.with_name("compile.log.7").read_text()
    found = manifest.read(compiling.directory)
    assert found is not None
    assert found.dropped == dropped
    assert found.key == compiling.application.recipe.key
    assert not any(found.recipe.neuron[name] for name in EVERY_KERNEL)
    judgement = judge(compiling.directory, compiling.application.recipe)
    assert judgement is not None
    assert judgement.verdict is Verdict.USABLE, str(judgement)


def test_groups_that_are_off_cost_no_try_and_the_rest_stays_on(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    compiling.configure(mlp_kernel_enabled=True, qkv_kernel_enabled=True)
    stand_in(refuses="mlp_kernel_enabled")
    assert compiling.run(fall_back=True) == ("mlp_kernel_enabled",)
    assert compiling.tries() == 2
    found = manifest.read(compiling.directory)
    assert found is not None
    assert found.recipe.neuron["qkv_kernel_enabled"]
    assert found.recipe.neuron["fused_qkv"]


def test_when_nothing_is_left_the_error_says_what_was_tried(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    compiling.configure(mlp_kernel_enabled=True)
    stand_in(refuses="tp_degree")
    with pytest.raises(
        CompileError, match="fails without fused_qkv, mlp_kernel_enabled too"
    ) as caught:
        compiling.run(fall_back=True)
    assert "NCC_IXCG856" in str(caught.value)
    assert str(compiling.log.with_name("compile.log.3")) in str(caught.value)
    assert caught.value.tail
    assert compiling.tries() == 3
    assert not compiling.directory.exists()
    assert compiling.drafts() == []


def test_no_kernel_is_given_up_for_a_full_disk(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    compiling.configure(**EVERY_KERNEL)
    stand_in(says="[ERROR] [NCC_IXCG856] nki kernel failed\\nwrite: No space left on device")
    with pytest.raises(CompileError, match="No space left"):
        compiling.run(fall_back=True)
    assert compiling.tries() == 1


TRACEBACK = ["Traceback (most recent call last):", '  File "/x/modules/kernels/nki.py", line 3']


@pytest.mark.parametrize(
    ("said", "refused"),
    [
        (["x [ERROR] [NCC_IXCG856] MATCH_REPLACE8 Instruction expects at least 8"], True),
        (["[INTERNAL_ERROR] [NCC_IXLV002] Expected core barriers to have name"], True),
        ([*TRACEBACK, "RuntimeError: neuronx-cc failed with 70"], True),
        ([*TRACEBACK, "RuntimeError: Compilation failure"], True),
        ([*TRACEBACK, "AssertionError: heads must be a multiple of 128"], True),
        ([*TRACEBACK, "ValueError: 7"], True),
        (["RuntimeError: Failed to execute the model status=1003 message=Numerical Error"], True),
        (["[ERROR]: Got a cached failed neff at /c/MODULE_1/model.neff. [NCC_INLA001] x"], True),
        (["[ERROR]: Got a cached failed neff at /c/MODULE_1/model.neff. Will skip"], False),
        (["INFO:Neuron:config: mlp_kernel_enabled nki", "ValueError: no such model"], False),
        (["INFO:Neuron:Call compiler with cmd: --nki --kernel", "stopped"], False),
        ([*TRACEBACK, "ModuleNotFoundError: No module named 'nki'"], False),
        ([*TRACEBACK, NO_SPACE], False),
        (
            [
                *TRACEBACK,
                "RuntimeError: [enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",
            ],
            False,
        ),
        ([*TRACEBACK, "huggingface_hub.errors.GatedRepoError: 401 Client Error."], False),
        ([*TRACEBACK, "MemoryError"], False),
        (["[F137] neuronx-cc was forcibly killed - insufficient system memory."], False),
        (["[ERROR] [NCC_EOOM001] Maximum peak HBM usage of 32.00GB exceeds HBM limit"], False),
        ([], False),
    ],
)
def test_what_a_kernel_can_be_to_blame_for(said: list[str], refused: bool) -> None:
    cause, line = evidence(["INFO:Neuron:starting", *said]).cause()
    assert cause.refused is refused
    assert line
    assert cause.mend


def test_a_compiler_that_was_killed_is_not_tried_again(
    compiling: Compile, stand_in: Callable[..., None]
) -> None:
    compiling.configure(**EVERY_KERNEL)
    stand_in(hang=60)

    def kill(progress: Progress) -> None:
        if "Call compiler" in progress.line:
            # The child that compiles stays behind, with the pipe.
            first = next(p for p in compiling.compilers() if p.ppid() == os.getpid())
            first.kill()

    with pytest.raises(CompileError, match=r"killed by signal 9 \(Killed\).*dmesg"):
        compiling.run(fall_back=True, report=kill)
    assert compiling.tries() == 1
    assert compiling.compilers() == []

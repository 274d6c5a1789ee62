"""What we hand to vLLM is what `vllm serve` would have, and our derived figures are vLLM's.

Two arguments are ours on purpose, with a measured reason that `check --show` prints: dtype on
processors without native bf16, and distributed_executor_backend.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from serve_app.artifacts.job import WARM_UP

ROOT = Path(__file__).parents[2]
CODE = """
import json, os, sys
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
from serve_app.backends import BACKENDS, this_machine
from serve_app.config import parse_args
from serve_app.engine import adapter
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.utils.argparse_utils import FlexibleArgumentParser

model = "serve_app/demo_model"
args = parse_args({"model": {"id": "demo"}, "engine": {"enable_auto_tool_choice": True,
    "tool_call_parser": "hermes", "override_generation_config": {"top_k": 3}}})
plan = BACKENDS["cpu"].plan(args, this_machine())
ours = adapter.parse(plan.command(model, ["demo"]))
added = plan.engine_args.keys() - args.engine.keys()
assert added <= {"dtype", "distributed_executor_backend"}, added

top = FlexibleArgumentParser()
parser = ServeSubcommand().subparser_init(top.add_subparsers(dest="subparser"))
bare = top.parse_args(["serve", model, "--served-model-name", "demo", "--enable-auto-tool-choice",
    "--tool-call-parser", "hermes", "--override-generation-config", '{"top_k": 3}',
    *(f"--{name.replace('_', '-')}={plan.engine_args[name]}" for name in added)])
bare.model = bare.model_tag
ignore = {"subparser", "dispatch_function"}
different = {k: (repr(getattr(ours, k, None)), repr(v)) for k, v in vars(bare).items()
             if k not in ignore and repr(getattr(ours, k, None)) != repr(v)}
config = AsyncEngineArgs.from_cli_args(ours).create_engine_config(
    usage_context=adapter.UsageContext.OPENAI_API_SERVER)
print("\\n" + json.dumps([different, config.scheduler_config.max_num_seqs, plan.max_num_seqs]))
"""


def test_the_same_arguments_as_vllm_serve() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=ROOT, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    different, seqs, planned = json.loads(done.stdout.splitlines()[-1])
    assert different == {}
    assert seqs == planned


def test_the_warm_up_that_compiles_is_vllms_own_start(tmp_path: Path) -> None:
    """The code that a compile through vLLM's plugin runs, with server arguments among the rest.

    vLLM 0.29 has moved a module since the versions that Neuron has (0.13 to 0.24).
    """
    code = WARM_UP.replace(
        "vllm.entrypoints.openai.cli_args", "vllm.entrypoints.launchers.cli_args"
    )
    log = tmp_path / "log"
    words = ["--model=serve_app/demo_model", "--served-model-name", "x", "--dtype=float32"]
    words += [
        "--max-model-len=256",
        "--enforce-eager",
        "--enable-auto-tool-choice",
        "--tool-call-parser=hermes",
    ]
    env = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=ROOT, env=env, stdout=file, stderr=file
        )
    assert done.returncode == 0, log.read_text()[-2000:]
    assert "init engine" in log.read_text()

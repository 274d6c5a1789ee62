"""What we hand to vLLM is what `vllm serve` would have, and our derived figures are vLLM's.

Two arguments are ours on purpose, with a measured reason that `check --show` prints: dtype on
processors without native bf16, and distributed_executor_backend.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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
ours = adapter.parse(plan.command(model, "demo"))
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

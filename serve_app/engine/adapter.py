"""The one module that imports vLLM, for vLLM 0.13, 0.16, 0.24 and 0.29.

Where the versions differ, the difference is named once, here:
- 0.29 moved the server's entry points to `vllm.entrypoints.launchers`;
- 0.13 takes no `supported_tasks`; 0.24 and later also take the model's configuration.
"""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import vllm
from vllm import envs
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.metrics.loggers import PrometheusStatLogger

from serve_app.engine.errors import StartupError

if TYPE_CHECKING:
    from fastapi import FastAPI

_UNTRACED = f"00-{1:032x}-{1:016x}-00"
"""A trace that its client does not record: without it, each probe would be a trace of its own."""
VERSION = tuple(int(part) for part in vllm.__version__.split(".")[:2])

if VERSION >= (0, 29):
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
else:
    from vllm.entrypoints.openai.api_server import (
        build_app,
        init_app_state,
        validate_api_server_args,
    )
    from vllm.entrypoints.openai.cli_args import make_arg_parser, validate_parsed_serve_args


def parse(command: list[str]) -> Namespace:
    """Parse a `vllm serve MODEL --option=value` command line as vLLM does.

    Raises:
        StartupError: vLLM refuses an argument.
    """

    def refuse(message: str) -> NoReturn:
        raise StartupError(f"vLLM {vllm.__version__} refuses an argument: {message}")

    parser = make_arg_parser(FlexibleArgumentParser(prog="vllm serve"))
    parser.error = refuse
    args: Namespace = parser.parse_args(command[2:])
    args.model = args.model_tag
    try:
        validate_parsed_serve_args(args)
        validate_api_server_args(args)
    except (KeyError, TypeError, ValueError) as error:
        raise StartupError(str(error.args[0] if error.args else error)) from None
    return args


def start(args: Namespace, step_clock: Any) -> AsyncLLM:
    """Start EngineCore and wait until it has loaded the model. Blocks, for minutes.

    `step_clock` is a stat logger factory that learns of each step of the engine.
    """
    engine_args = AsyncEngineArgs.from_cli_args(args)
    context = UsageContext.OPENAI_API_SERVER
    return AsyncLLM.from_vllm_config(
        vllm_config=engine_args.create_engine_config(usage_context=context),
        usage_context=context,
        stat_loggers=[PrometheusStatLogger, step_clock],
        enable_log_requests=engine_args.enable_log_requests,
        disable_log_stats=engine_args.disable_log_stats,
    )


async def serving_app(engine: AsyncLLM, args: Namespace) -> FastAPI:
    """vLLM's own FastAPI app around the engine, every route and semantics vLLM's."""
    tasks = await engine.get_supported_tasks()
    app: FastAPI
    if VERSION < (0, 16):
        app = build_app(args)
        await init_app_state(engine, app.state, args)
    elif VERSION < (0, 24):
        app = build_app(args, tasks)
        await init_app_state(engine, app.state, args, tasks)
    else:
        app = build_app(args, tasks, engine.model_config)
        await init_app_state(engine, app.state, args, tasks)
    # vLLM's own, which it calls in EngineCore only; here it saves 3 % of the CPU of a token.
    envs.enable_envs_cache()
    # What vLLM's handler of a dead engine tells to exit; the replica sees to that by itself.
    app.state.server = SimpleNamespace(should_exit=False)
    return app


def facts(engine: AsyncLLM) -> dict[str, str]:
    """What the engine runs with, as it has decided it itself."""
    config = engine.vllm_config
    return {
        "vllm_version": vllm.__version__,
        "tensor_parallel_size": str(config.parallel_config.tensor_parallel_size),
        "max_num_seqs": str(config.scheduler_config.max_num_seqs),
        "max_model_len": str(config.model_config.max_model_len),
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
    }


async def one_token(engine: AsyncLLM, request_id: str) -> None:
    """Generate one token, to see that the engine still steps. Pooling models: nothing."""
    if "generate" not in await engine.get_supported_tasks():
        return
    prompt = {"prompt_token_ids": [0]}
    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    headers = {"traceparent": _UNTRACED}
    async for _ in engine.generate(prompt, params, request_id=request_id, trace_headers=headers):
        pass

"""Start, watch and stop the engine of a replica."""

from __future__ import annotations

import asyncio
import gc
import json
import logging.config
import os
import shlex
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve_app.backends import EnginePlan
from serve_app.backends.traces import with_traces
from serve_app.config import AppArgs
from serve_app.config.environment import expand
from serve_app.engine.accounts import keep_accounts
from serve_app.engine.artifact import CompiledModel
from serve_app.engine.child import PARENT_VARIABLE, logging_config
from serve_app.engine.cores import claim_cores
from serve_app.engine.errors import StartupError
from serve_app.engine.phases import ENGINE, Phases, logger
from serve_app.engine.weights import fetch
from serve_app.telemetry.logs import in_serves_form, join_serve, say_who
from serve_app.telemetry.replica import take_files
from serve_app.telemetry.traces import ARGUMENT, flush, prepare

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.v1.engine.async_llm import AsyncLLM

_GC_OBJECTS = 10_000
_POLL_S = 0.5
_WATCH_S = 0.25
_LAST_WORDS_S = 0.5
"""Within it the requests that the engine had get their error."""


class StepClock:
    """A stat logger of vLLM's shape that only remembers when the engine last made a step."""

    def __init__(self) -> None:
        self.last_step = time.monotonic()

    def __call__(self, vllm_config: Any, engine_index: int = 0) -> StepClock:
        return self

    def record(self, *args: Any, **kwargs: Any) -> None:
        self.last_step = time.monotonic()

    def log(self) -> None: ...

    def log_engine_initialized(self) -> None: ...

    def record_sleep_state(self, *args: Any, **kwargs: Any) -> None: ...


class Engine:
    """A running engine: vLLM's ASGI app, its health, its end."""

    def __init__(
        self, llm: AsyncLLM, app: FastAPI, args: AppArgs, plan: EnginePlan, clock: StepClock
    ) -> None:
        self.app = app
        self._llm = llm
        self._health = args.health
        # NxDI with LoRA: a request that names no adapter ends the engine (vllm-neuron,
        # neuronx_distributed_model_runner.py, `None.lora_name`).
        self._probes = not (plan.backend == "nxdi" and args.engine.get("enable_lora"))
        self.attributes: dict[str, str] | None = None
        """Of every request's span; None: no traces."""
        if plan.engine_args.get(ARGUMENT):
            # With adapters only the request's body says which model.
            lora = args.engine.get("enable_lora")
            self.attributes = {} if lora else {"gen_ai.response.model": args.model.id}
        self._clock = clock
        self._probe: asyncio.Task[None] | None = None
        self._probed_at = 0.0
        self.facts: dict[str, str] = {}
        self._watch = asyncio.create_task(self._end_when_dead())

    async def _end_when_dead(self) -> None:
        """End this process soon after its engine, so that balancers leave it at once: one that
        answers every request with an error is the least busy of all."""
        while not self._llm.errored:
            await asyncio.sleep(_WATCH_S)
        logger.error("the engine is dead: EngineCore has exited; so does this replica")
        await asyncio.sleep(_LAST_WORDS_S)
        os._exit(1)

    async def check_health(self) -> None:
        """Raise when the engine is dead, or alive but frozen.

        An engine that steps is well. One that has not stepped for `probe_period_s` is asked
        for one token; it is frozen when that takes longer than `probe_timeout_s`.

        Raises:
            RuntimeError: says which of the two.
        """
        if self._llm.errored:
            raise RuntimeError("the engine is dead: EngineCore has exited")
        if not self._probes:
            return
        now = time.monotonic()
        if now - self._clock.last_step < self._health.probe_period_s:
            self._stop_probe()
        elif self._probe is None:
            self._probed_at = now
            from serve_app.engine.adapter import one_token

            request_id = f"health-{uuid.uuid4().hex}"
            self._probe = asyncio.create_task(one_token(self._llm, request_id))
        elif self._probe.done():
            self._probe = None
            self._clock.last_step = now  # pooling models have no token to give
        elif now - self._probed_at > self._health.probe_timeout_s:
            waited = now - self._probed_at
            raise RuntimeError(f"the engine is frozen: no token in {waited:.0f} s")

    def is_up(self) -> bool:
        """Whether EngineCore lives, and answers where it is probed."""
        asked = self._probe is not None and not self._probe.done()
        late = asked and time.monotonic() - self._probed_at > self._health.probe_timeout_s
        return not (self._llm.errored or late)

    def keep_accounts(self) -> None:
        """From now on, count what each request takes whose context has an account."""
        keep_accounts(self._llm)

    def names(self) -> list[str]:
        """What clients may put into `model` now, with the adapters that are loaded."""
        models = self.app.state.openai_serving_models
        return [*(path.name for path in models.base_model_paths), *models.lora_requests]

    async def cards(self) -> list[dict[str, Any]]:
        """vLLM's model cards."""
        models = await self.app.state.openai_serving_models.show_available_models()
        return [card.model_dump(mode="json") for card in models.data]

    def _stop_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None

    async def shutdown(self) -> None:
        """Send the last spans; end EngineCore and its workers."""
        self._stop_probe()
        if self.attributes is not None:
            await flush()
        self._watch.cancel()
        self._llm.shutdown()


async def start_engine(
    args: AppArgs, plan: EnginePlan, phases: Phases, who: tuple[str, str, str] = ("", "", "")
) -> Engine:
    """Fetch the weights, start vLLM and build its app. Sets this process's environment.

    `who`: application, deployment and replica, for traces.

    Raises:
        ConfigError: a variable that `env` refers to is unset, or traces have no exporter.
        StartupError: one line with the first cause.
    """
    for name, value in plan.env.items():
        os.environ[name] = expand(value, os.environ, f"env.{name}")
    plan = with_traces(plan, os.environ)
    if plan.engine_args.get(ARGUMENT):
        prepare(os.environ, *who)
    say_who(os.environ, *who)
    # The whole start runs outside the event loop and under no time limit.
    model = await asyncio.to_thread(
        fetch, args.model.where, args.model.revision, "model.source", phases
    )
    tokenizer = None
    if args.model.tokenizer:
        tokenizer = await asyncio.to_thread(
            fetch, args.model.tokenizer, None, "model.tokenizer", phases
        )
    compiled = None
    if plan.backend == "nxdi":
        compiled = CompiledModel(args, plan, model, phases)
        await asyncio.to_thread(compiled.prepare, os.environ)
    try:
        if plan.target is not None:
            claim_cores(plan.backend, plan.target.cores, os.environ)
        engine = await _start_vllm(args, plan, model, tokenizer, phases)
        if compiled is not None:
            await asyncio.to_thread(compiled.keep)
    finally:
        if compiled is not None:
            compiled.close()
    return engine


async def _start_vllm(
    args: AppArgs, plan: EnginePlan, model: str, tokenizer: str | None, phases: Phases
) -> Engine:
    phases.report(ENGINE, f"vLLM on {plan.backend}")
    command = plan.command(model, args.model.names, tokenizer)
    logger.info("engine: %s", shlex.join(command))
    clock = StepClock()
    llm, parsed = await asyncio.to_thread(_start, command, clock, phases)
    from serve_app.engine import adapter

    if plan.backend == "cpu" and args.engine.get("enforce_eager"):
        phases.compile_seconds = 0.0  # without it vLLM does not tell what torch.compile took
    take_files(os.environ)
    engine = Engine(llm, await adapter.serving_app(llm, parsed), args, plan, clock)
    engine.facts = adapter.facts(llm)
    # By default Python looks for cycles after every 700 new objects; a stream leaves none behind,
    # and looking took 3 % of this process's CPU.
    gc.set_threshold(_GC_OBJECTS)
    return engine


def _start(command: list[str], clock: StepClock, phases: Phases) -> tuple[Any, Any]:
    with _handlers_kept():
        from serve_app.engine import adapter
    join_serve()
    with _handlers_kept(), _child_events(phases) as errors:
        try:
            parsed = adapter.parse(command)
            return adapter.start(parsed, clock), parsed
        except StartupError:
            raise
        except Exception as error:
            # EngineCore's own words come first: what vLLM raises here only points to its log.
            cause = errors[0] if errors else f"{type(error).__name__}: {_first_line(error)}"
            raise StartupError(f"vLLM cannot start the model: {cause}") from error


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """vLLM and NIXL configure logging when they are imported, and logging.config.dictConfig then
    closes the handlers of everyone, Ray Serve's log file among them."""
    close = logging.config._clearExistingHandlers  # type: ignore[attr-defined]
    logging.config._clearExistingHandlers = lambda: None  # type: ignore[attr-defined]
    try:
        yield
    finally:
        logging.config._clearExistingHandlers = close  # type: ignore[attr-defined]


@contextmanager
def _child_events(phases: Phases) -> Iterator[list[str]]:
    """Follow what vLLM's processes say of their start; yields the errors as they come."""
    os.environ[PARENT_VARIABLE] = str(os.getpid())
    errors: list[str] = []
    with tempfile.TemporaryDirectory(prefix="neuron-serve-") as directory:
        events = Path(directory, "events.jsonl")
        events.touch()
        config = Path(directory, "logging.json")
        config.write_text(json.dumps(in_serves_form(logging_config(events))))
        if ours := "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
            os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(config)
        done = threading.Event()

        def follow() -> None:
            with events.open() as file:
                while True:
                    ended = done.wait(_POLL_S)
                    for line in file:
                        event = json.loads(line)
                        if "phase" in event:
                            phases.report(event["phase"])
                        else:
                            errors.append(_first_line(event["error"]))
                    if ended:
                        return

        follower = threading.Thread(target=follow, name="startup-events", daemon=True)
        follower.start()
        try:
            yield errors
        finally:
            done.set()
            follower.join()
            if ours:
                del os.environ["VLLM_LOGGING_CONFIG_PATH"]


def _first_line(error: object) -> str:
    """The first line that says something; pydantic puts the cause on the third."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and "validation error" in lines[0]:
        return next((line for line in lines[1:] if "," in line or "error" in line), lines[0])
    return lines[0] if lines else type(error).__name__

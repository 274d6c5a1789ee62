"""Rules about a prefill and a decode engine together; each alone has the rules of an engine.

Where the two run is the matter of `placement`, which importing this module registers too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from serve_app.config import Severity
from serve_app.neuron.stacks import stacks
from serve_app.preflight import placement  # noqa: F401  (registers its rules)
from serve_app.preflight.case import BOTH, CPU, NATIVE, Pair, Side, Trip, pair_rule

BACKEND = "pd-backend"
_NIXL = "vLLM 0.24 and 0.29 kv_connector/v1/nixl"
_HASH = f"{_NIXL}/metadata.py compute_nixl_compatibility_hash"
_HANDSHAKE = f"{_NIXL}/base_worker.py _validate_remote_agent_handshake"
_DESIGN = "aws-neuron-sdk vllm-neuron/docs/design/vllm/disaggregated-inference.md"
_TUTORIAL = "aws-neuron-sdk vllm-neuron/docs/tutorials/tutorial-di-1p1d-xpyd.md"
_CHIP = Path("/dev/neuron0")


@pair_rule(
    BACKEND,
    Severity.ERROR,
    "KV caches travel between engines of the native plugin, or of the processor",
    f"{_TUTORIAL} Prerequisites; vllm-user-guide-v1.rst, known issue 5 (NxDI)",
    CPU | BOTH,
)
def backend(pair: Pair) -> Iterator[Trip]:
    decode, prefill = (side.plan.backend for side in pair.sides)
    given = pair.decode.args
    families = sorted({name for s in stacks() if s.backend == "neuron" for name in s.families})
    target = pair.decode.plan.target
    if decode != prefill:
        message = f"decode runs on {decode} and prefill on {prefill}: they share no KV cache"
        mend = f"remove prefill.instance, or take one that {decode} runs on"
        yield Trip(message, mend, "prefill.instance")
    elif decode == "nxdi":
        path = "instance" if given.backend == "auto" else "backend"
        message = "nxdi does not split prefill and decode"
        mend = "set backend: neuron"
        if target is not None and target.instance.family not in families:
            message += f", and {target.instance.name} has nothing else"
            mend = f"remove prefill, or serve on {', '.join(families)} with backend: neuron"
        yield Trip(message, mend, path)


@pair_rule(
    "pd-nixl",
    Severity.ERROR,
    "NIXL is installed",
    f"vLLM 0.29 distributed/nixl_utils.py; {_NIXL}/base_worker.py (RuntimeError); {_TUTORIAL}",
)
def nixl(pair: Pair) -> Iterator[Trip]:
    if find_spec("nixl") is not None:
        return
    message, path = "NIXL, which carries KV caches, is not installed", "prefill"
    if pair.decode.plan.backend == "cpu":
        yield Trip(message, "pip install 'neuron-serve[pd]'", path)
    elif _CHIP.exists():
        # Whoever checks a file for Neuron mostly sits elsewhere, where NIXL is not missed. Even
        # with a chip the replica may run in a container of its own: no reason to refuse.
        mend = "pip install nixl; it needs libfabric.so.1 and libcuda.so.1 beside it"
        yield Trip(f"{message} on this machine", mend, path, Severity.WARNING)


_SHAPES = {
    "dtype": "auto",
    "kv_cache_dtype": "auto",
    # `kv_cache_dtype: auto` follows it (utils/torch_utils.py resolve_kv_cache_dtype_string).
    "quantization": None,
    "hf_overrides": None,  # may change heads, layers and their size
    "attention_backend": None,
    "disable_hybrid_kv_cache_manager": None,
    # Not in the hash: the handshake asserts as many layers per rank.
    "pipeline_parallel_size": 1,
}
"""Engine arguments that shape a KV cache, and vLLM's default."""


@pair_rule(
    "pd-kv-cache",
    Severity.ERROR,
    "Both engines keep KV caches of one kind",
    f"{_HASH} (RuntimeError at the first transfer); base_worker.py, number of KV layers",
)
def kv_cache(pair: Pair) -> Iterator[Trip]:
    for name, default in _SHAPES.items():
        yield from _differ(pair, name, default, "a KV cache of one kind does not fit the other")


@pair_rule(
    "pd-kv-layout",
    Severity.ERROR,
    "Both engines lay their KV caches out alike",
    f"{_HANDSHAKE} (RuntimeError); tutorial-llama3-70b.md fp8_packed_kv, tutorial-gpt-oss.md",
)
def kv_layout(pair: Pair) -> Iterator[Trip]:
    # NIXL copies bytes: a packed K cache read as a plain one is wrong text, not an error.
    for key, default in (("fp8_packed_kv", False), ("quantization", None)):
        decode, prefill = (side.neuron(key) or default for side in pair.sides)
        if decode != prefill:
            path = pair.at(pair.prefill, "engine", "additional_config") + f".neuron_config.{key}"
            message = f"{key} is {_shown(decode)} for decode and {_shown(prefill)} for prefill"
            yield Trip(message, "set the same in both additional_config", path)
    name = "VLLM_KV_CACHE_LAYOUT"
    decode, prefill = (side.plan.env.get(name) for side in pair.sides)
    if decode != prefill:
        message = f"{name} is {_shown(decode)} for decode and {_shown(prefill)} for prefill"
        yield Trip(message, "set it in env only", pair.at(pair.prefill, "env", name))


_PROMPT = (
    "chat_template",
    "chat_template_content_format",
    "default_chat_template_kwargs",
    "tokenizer_mode",
    "mm_processor_kwargs",
)
_ADAPTERS = ("enable_lora", "lora_modules")


@pair_rule(
    "pd-prompt",
    Severity.ERROR,
    "Both engines read the same prompt into the same weights",
    f"{_NIXL}/pull_scheduler.py get_num_new_matched_tokens counts decode's own prompt tokens",
)
def prompt(pair: Pair) -> Iterator[Trip]:
    for name in _PROMPT:
        yield from _differ(pair, name, None, "each engine renders the request by itself")
    for name in _ADAPTERS:
        yield from _differ(pair, name, None, "the KV cache is of the adapter that computed it")


@pair_rule(
    "pd-speculation",
    Severity.ERROR,
    "A draft model that reads the target's KV cache is the same in both engines",
    "vLLM 0.29 nixl/metadata.py _get_speculative_compatibility_factors; "
    f"{_DESIGN} Speculative Decoding with DI",
)
def speculation(pair: Pair) -> Iterator[Trip]:
    decode, prefill = (_draft(side) for side in pair.sides)
    if decode != prefill:
        path = pair.at(pair.prefill, "engine", "speculative_config")
        what = [name for name in _DRAFT if (decode or {}).get(name) != (prefill or {}).get(name)]
        message = f"speculative_config differs between decode and prefill ({', '.join(what)})"
        yield Trip(f"{message}: the draft's KV cache travels too", "give both the same", path)


_DRAFT = ("method", "model", "revision", "code_revision", "parallel_drafting", "kv_cache_dtype")
_READS_TARGET = ("eagle", "eagle3", "mtp", "dflash", "dspark")


def _draft(side: Side) -> Mapping[str, Any] | None:
    given = side.engine("speculative_config")
    if not isinstance(given, Mapping):
        return None
    method = str(given.get("method"))
    if method not in _READS_TARGET and not method.endswith("_mtp"):
        return None  # n-grams and the like: nothing of them is in the KV cache
    return {name: given.get(name) for name in _DRAFT}


_BLOCK = {"cpu": 128, "neuron": 32}
"""Default block_size: vLLM 0.29 platforms/cpu.py; the plan of `neuron` fills its own in."""


@pair_rule(
    "pd-block-size",
    Severity.ERROR,
    "Both engines keep KV caches in blocks of one size",
    f"{_HANDSHAKE}: prefill's blocks must divide decode's, not with sliding windows, not when "
    "prefill has the higher TP; AWS's documents show equal blocks only",
)
def block_size(pair: Pair) -> Iterator[Trip]:
    default = _BLOCK[pair.decode.plan.backend]
    decode, prefill = (side.number("block_size", default) for side in pair.sides)
    if decode != prefill:
        message = f"block_size is {decode} for decode and {prefill} for prefill"
        path = pair.at(pair.prefill, "engine", "block_size")
        yield Trip(message, f"set {decode} for both", path)


@pair_rule(
    "pd-length",
    Severity.ERROR,
    "A prefill engine takes every prompt that decode takes",
    "vLLM v1/engine/input_processor.py: a prompt beyond max_model_len is refused (400)",
)
def length(pair: Pair) -> Iterator[Trip]:
    longest = pair.model.max_positions if pair.model else 0
    decode, prefill = (side.number("max_model_len", longest) for side in pair.sides)
    if decode and prefill and prefill < decode:
        message = f"max_model_len is {decode} for decode and only {prefill} for prefill"
        path = pair.at(pair.prefill, "engine", "max_model_len")
        yield Trip(message, f"set it to {decode} or more for prefill", path)


@pair_rule(
    "pd-tensor-parallel",
    Severity.ERROR,
    "One engine's tensor-parallel degree divides the other's",
    "vLLM 0.24 and 0.29 kv_connector/utils.py tp_ratio, is_kv_replicated (AssertionError)",
)
def tensor_parallel(pair: Pair) -> Iterator[Trip]:
    decode, prefill = (side.number("tensor_parallel_size") for side in pair.sides)
    path = pair.at(pair.prefill, "engine", "tensor_parallel_size")
    if max(decode, prefill) % min(decode, prefill):
        message = f"tensor_parallel_size {decode} of decode and {prefill} of prefill: neither"
        yield Trip(f"{message} divides the other", "use powers of two", path)
    elif pair.model and _copied_heads(pair, decode, prefill):
        heads = pair.model.kv_heads
        message = f"prefill's tensor_parallel_size {prefill} copies each of {heads} KV heads, and"
        mend = f"use at most {max(decode, heads)} for prefill, or {prefill} for both"
        yield Trip(f"{message} decode's {decode} is lower: vLLM refuses to read copies", mend, path)


def _copied_heads(pair: Pair, decode: int, prefill: int) -> bool:
    """Heads copied on prefill's ranks, which decode's fewer ranks would have to merge."""
    assert pair.model is not None
    if pair.model.model_type.startswith(("deepseek_v", "kimi")):  # MLA has no heads to copy
        return False
    # NeuronNixlConnector skips this check for context parallelism (dcp.md, NeuronNixlConnector).
    parallel = pair.prefill.number("decode_context_parallel_size") > 1
    return prefill > max(decode, pair.model.kv_heads) and not parallel


@pair_rule(
    "pd-context-parallel",
    Severity.ERROR,
    "Context parallelism of both engines fits together",
    "aws-neuron-sdk vllm-neuron/docs/design/parallelism/dcp.md Transfer Topologies; "
    "vLLM 0.29 nixl/base_worker.py (DCP sizes must divide one another)",
    NATIVE,
)
def context_parallel(pair: Pair) -> Iterator[Trip]:
    name = "decode_context_parallel_size"
    decode, prefill = (side.number(name) for side in pair.sides)
    tp = [side.number("tensor_parallel_size") for side in pair.sides]
    path = pair.at(pair.prefill, "engine", name)
    if prefill > 1 and prefill % decode:
        message = f"{name} is {prefill} for prefill, which decode's {decode} does not divide"
        severity = None if decode % prefill else Severity.WARNING  # vLLM 0.29 takes it
        yield Trip(message, f"use 1, {decode} or a multiple for prefill", path, severity)
    elif decode > 1 == prefill and tp[0] != tp[1]:
        message = f"{name} {decode} for decode only, with tensor_parallel_size {tp[0]} there and"
        mend = f"use {tp[0]} for both; AWS documents this with one degree"
        yield Trip(f"{message} {tp[1]} for prefill", mend, f"engine.{name}", Severity.WARNING)


@pair_rule(
    "pd-connector",
    Severity.ERROR,
    "The processor has vLLM's own connector, over UCX",
    f"{_DESIGN}: NeuronNixlConnector is of vllm-neuron; setup-guide.md: LIBFABRIC needs EFA's "
    "libraries. `neuron`: native-transfer-backend",
    CPU,
)
def connector(pair: Pair) -> Iterator[Trip]:
    transfer = pair.section.transfer
    if transfer.connector != "NixlConnector":
        message = f"{transfer.connector} is of the native plugin, and cpu has none"
        yield Trip(message, "remove it", "prefill.transfer.connector")
    if transfer.backend == "LIBFABRIC":
        message = "LIBFABRIC carries KV caches over EFA, which cpu does without"
        yield Trip(message, "remove it: UCX is the default", "prefill.transfer.backend")


@pair_rule(
    "pd-lease",
    Severity.WARNING,
    "A KV cache outlives the steps in which decode cannot renew its lease",
    f"{_NIXL}/base_scheduler.py _heartbeat_interval (lease // 6), base_worker.py "
    "_lease_extension (lease * 2 // 3); vLLM docs/design/nixl_kv_cache_lease.md",
)
def lease(pair: Pair) -> Iterator[Trip]:
    # Renewals go out with decode's steps. An engine is not even asked whether it still lives
    # before it has shown no step for probe_period_s, so steps may well take that long.
    lease_s, step = pair.section.transfer.lease_s, pair.decode.args.health.probe_period_s
    left = lease_s * 2 // 3 - lease_s // 6
    if left < step:
        about = int(2 * step)  # the least lease that leaves a step
        enough = next(s for s in count(about - 4) if s * 2 // 3 - s // 6 >= step)
        message = f"lease_s {lease_s} is renewed only if decode's steps stay below {left} s, and"
        message += f" health.probe_period_s lets them take {step:g} s"
        message += ": what prefill frees then is read all the same"
        yield Trip(message, f"set it to {enough} or more", "prefill.transfer.lease_s")


@pair_rule(
    "pd-session",
    Severity.WARNING,
    "A session stays with a prefill replica for the prefix that is cached there",
    "vLLM docs/features/automatic_prefix_caching.md",
)
def session(pair: Pair) -> Iterator[Trip]:
    off = pair.prefill.plan.engine_args.get("enable_prefix_caching") is False
    if pair.section.routing == "session" and off:
        message = "routing session, and prefill's enable_prefix_caching is false"
        mend = "set it to true for prefill, or routing: tokens"
        yield Trip(message, mend, "prefill.routing")


@pair_rule(
    "pd-warm-up",
    Severity.ERROR,
    "No engine skips the warm-up of a phase that it runs",
    f"{_DESIGN} Role-Specific Warmup; model-dev/onboarding-models.md fail_on_recompile",
    NATIVE,
)
def warm_up(pair: Pair) -> Iterator[Trip]:
    skip_prefill, skip_decode = (f"VLLM_NEURON_SKIP_{p}_WARMUP" for p in ("PREFILL", "DECODE"))
    skip_both = "VLLM_NEURON_SKIP_PREFILL_DECODE_WARMUP"
    falls_back = pair.section.fallback == "decode"
    wrong = {
        "decode": [skip_decode, skip_both, *([skip_prefill] if falls_back else [])],
        "prefill": [skip_prefill, skip_both],
    }
    seen = set()
    for side in pair.sides:
        for name in wrong[side.name]:
            path = pair.at(side, "env", name)
            if path in seen or side.plan.env.get(name, "0") in ("", "0"):
                continue
            seen.add(path)
            why = " (fallback: decode)" if (side.name, name) == ("decode", skip_prefill) else ""
            message = f"{name} is on, and a {side.name} engine runs that phase{why}"
            yield Trip(message, "remove it: each role skips what it does not need", path)


@pair_rule(
    "pd-bidirectional",
    Severity.WARNING,
    "KV caches travel from prefill to decode only",
    f"{_DESIGN} Bi-directional KV Transfer: the proxy must forward the last chunk's parameters",
    NATIVE,
)
def bidirectional(pair: Pair) -> Iterator[Trip]:
    name = "VLLM_NEURON_BIDIRECTIONAL_KV"
    for side in pair.sides:
        if side.plan.env.get(name, "0") not in ("", "0"):
            message = f"{name}: nothing here sends decode's KV caches back, which only wait there"
            yield Trip(message, "remove it", pair.at(side, "env", name))
            return


def _differ(pair: Pair, name: str, default: Any, why: str) -> Iterator[Trip]:
    """A trip where an engine argument differs."""
    decode, prefill = (side.engine(name, default) or default for side in pair.sides)
    if decode != prefill:
        message = f"{name} is {_shown(decode)} for decode and {_shown(prefill)} for prefill: {why}"
        yield Trip(message, "give both the same", pair.at(pair.prefill, "engine", name))


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "not set" if value is None else str(value).lower()
    return repr(value)

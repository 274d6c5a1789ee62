"""A fake. It stands for `inference_demo` and neuronx-cc, which need a chip of AWS.

It takes inference_demo's command line, prints the lines that the library, the compiler and its
wrapper print, from as many processes, and writes the same files in the same order. What it writes
cannot be loaded. Sources: neuronx-distributed-inference inference_demo.py and
models/application_base.py, neuronx-distributed trace/model_builder.py (2.29).

Run it as a script with the package's root on PYTHONPATH. Variables, all of them optional:

    STAND_IN_DELAY      seconds for each step
    STAND_IN_HANG       seconds for which the first bucket compiles and says nothing
    STAND_IN_REFUSES    flags, by NeuronConfig's names, with which the compiler fails
    STAND_IN_SAYS       text of a failure at the first bucket, exit code STAND_IN_EXIT (1)
    STAND_IN_TELLS      name of a variable whose value stands in the text of the failure
    STAND_IN_CACHED     the buckets come from the compile cache
    STAND_IN_FULL       the disk is full when model.pt is written
    STAND_IN_LEAVES_OUT the file that is not written
    STAND_IN_IGNORES    the compiler ignores SIGTERM
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve_app.neuron import nxdi_config

ARCHITECTURE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
MODEL_TYPES = ("llama", "mistral", "mixtral", "dbrx", "qwen2", "qwen3", "qwen3_moe", "gemma3")
SWITCHES = """do-sample dynamic top-k-kernel-enabled allow-input-truncation output-logits
    vocab-parallel layer-boundary-markers fused-qkv sequence-parallel-enabled
    flash-decoding-enabled is-continuous-batching disable-kv-cache-tiling on-device-sampling
    enable-bucketing bucket-n-active-tokens quantized kv-cache-quant
    early-expert-affinity-modulation disable-normalize-top-k-affinities fused-shared-experts
    save-sharded-checkpoint skip-sharding async-mode qkv-kernel-enabled qkv-nki-kernel-enabled
    qkv-cte-nki-kernel-fuse-rope qkv-kernel-nbsd-layout strided-context-parallel-kernel-enabled
    mlp-kernel-enabled quantized-mlp-kernel-enabled fused-rmsnorm-skip-gamma
    rmsnorm-quantize-kernel-enabled mlp-kernel-fuse-residual-add qkv-kernel-fuse-residual-add
    attn-block-tkg-nki-kernel-enabled attn-block-tkg-nki-kernel-cascaded-attention
    attn-block-tkg-nki-kernel-cache-update k-cache-transposed enable-spill-reload-dge skip-warmup
    compile-only apply-seq-ids-mask"""
TEXTS = """padding-side quantized-checkpoints-path quantization-type quantization-dtype
    router-act-fn router-dtype activation-quantization-type cast-type torch-dtype rpl-reduce-dtype
    attention-dtype"""
INTEGERS = """top-k global-topk pad-token-id batch-size seq-len n-active-tokens n-positions
    max-context-length max-new-tokens max-length weight-gather-seq-len-threshold ctx-batch-size
    tkg-batch-size max-batch-size kv-cache-batch-size kv-cache-padding-size sampling-dp-degree
    tp-degree cp-degree mlp-cp-degree attention-dp-degree pp-degree ep-degree moe-tp-degree
    moe-ep-degree world-size pa-num-blocks pa-block-size max-num-seqs
    windowed-context-encoding-size logical-nc-config cc-pipeline-tiling-factor
    scratchpad-page-size"""
LISTS = "context-encoding-buckets prefix-buckets token-generation-buckets"
FLOATS = "top-p temperature capacity-factor quantize-clamp-bound"


def knob(name: str, default: str = "") -> str:
    return os.environ.get(f"STAND_IN_{name}", default)


def arguments() -> argparse.Namespace:
    """inference_demo's, as strict as there."""
    parser = argparse.ArgumentParser("inference_demo")
    parser.add_argument("--model-type", choices=MODEL_TYPES, required=True)
    parser.add_argument("--task-type", required=True)
    run = parser.add_subparsers().add_parser("run")
    run.add_argument("--model-path", required=True)
    run.add_argument("--compiled-model-path", required=True)
    run.add_argument("--prompt", action="append", required=True)
    for name in SWITCHES.split():
        run.add_argument(f"--{name}", action="store_true")
    run.add_argument("--attn-kernel-enabled", action=argparse.BooleanOptionalAction)
    run.add_argument("--enable-block-kv-layout", dest="is_block_kv_layout", action="store_true")
    run.add_argument("--enable-prefix-caching", dest="is_prefix_caching", action="store_true")
    for names, kind in ((TEXTS, str), (INTEGERS, int), (FLOATS, float)):
        for name in names.split():
            run.add_argument(f"--{name}", type=kind)
    for name in LISTS.split():
        run.add_argument(f"--{name}", type=int, nargs="+")
    return parser.parse_args()


def neuron_config(given: dict[str, Any]) -> dict[str, Any]:
    """What NeuronConfig holds for these flags, as far as its keys are known."""
    known = nxdi_config.keys("neuron")
    config = {name: given[name] for name in known if given.get(name) is not None}
    if given["on_device_sampling"]:
        keys = nxdi_config.keys("on_device_sampling_config")
        config["on_device_sampling_config"] = {
            name: key.default if given.get(name) is None else given[name]
            for name, key in keys.items()
        }
    for name, key in known.items():
        default = key.default
        if isinstance(default, str) and default.startswith("="):
            default = config.get(default[1:])
        config.setdefault(name, default)
    degrees = [config[name] for name in ("tp_degree", "pp_degree", "ep_degree")]
    config["world_size"] = degrees[0] * degrees[1] * degrees[2]
    config["local_ranks_size"] = config["world_size"]
    config["lm_head_pad"] = config["logical_nc_config"] == 2
    return config


def log(text: str) -> None:
    print(f"INFO:Neuron:{text}", file=sys.stderr, flush=True)


def wrapper(text: str, level: str = "INFO") -> None:
    now = time.strftime("%Y-%m-%d %H:%M:%S.000827")
    print(f"{now}:  {os.getpid()}  {level} ||NEURON_CC_WRAPPER||: {text}", flush=True)


def step() -> None:
    time.sleep(float(knob("DELAY", "0")))


def in_a_child(work: Callable[[], int]) -> int:
    """Run `work` in a process of its own, as the compiler is; its exit code."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os._exit(work())
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trace(buckets: dict[str, list[int]], batch: int) -> None:
    log(f"Generating HLOs for the following models: {list(buckets)}")
    for submodel, lengths in buckets.items():
        log(f"Generating {len(lengths)} hlos for key: {submodel}")
        for length in lengths:
            shape = [1, length] if submodel.startswith("context") else [batch, 1]
            step()
            log(
                f"Finished generating HLO for {submodel} in 1.116992473602295 seconds, "
                f"input example shape = torch.Size({shape})"
            )
    log("Generated all HLOs in 2.8791353702545166 seconds")


def compile_bucket(submodel: str, bucket: int, config: dict[str, Any]) -> None:
    work = f"{os.environ.get('BASE_COMPILE_WORK_DIR', '/tmp/nxd_model/')}{submodel}/_tp0_bk{bucket}"
    digest = hashlib.sha256(f"{submodel} {bucket}".encode()).hexdigest()
    module = f"MODULE_{digest[:20]}+617f6939"
    if knob("CACHED"):
        cache = "/var/tmp/neuron-compile-cache/neuronxcc-2.24.5133.0+58f8de22"
        wrapper(f"Using a cached neff at {cache}/{module}/model.neff")
        return
    name = f"{work}/model.{module}"
    wrapper(
        f"Call compiler with cmd: neuronx-cc compile --framework=XLA {name}.hlo_module.pb "
        f"--output {name}.neff --target=trn1 --auto-cast=none --model-type=transformer --lnc=1 -O2"
    )
    if in_a_child(lambda: compiler(config)):
        fail(name)
    wrapper(f"Compilation Successfully Completed for model.{module}.hlo_module.pb")


def compiler(config: dict[str, Any]) -> int:
    """neuronx-cc: its exit code."""
    if knob("IGNORES"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("DGE ON Levels: {'scalar_dynamic_offset', 'io'}", flush=True)
    time.sleep(float(knob("HANG", "0")))
    for _ in range(3):
        print(".", end="", flush=True)
        step()
    refused = [flag for flag in knob("REFUSES").split() if config.get(flag)]
    if refused or knob("SAYS"):
        return 70
    print("\nCompiler status PASS", flush=True)
    return 0


def fail(name: str) -> None:
    said = knob("SAYS").replace("\\n", "\n") or (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')} [ERROR]: Failed compilation with ['neuronx-cc', "
        f"'compile', '--framework=XLA', '{name}.hlo_module.pb', '--target=trn2', '--model-type', "
        "'transformer', '-O1']: [ERROR] [NCC_IXCG856] MATCH_REPLACE8 Instruction expects at least "
        "8 input elements per partition\n"
        "Traceback (most recent call last):\n"
        '  File "/opt/venv/lib/python3.12/site-packages/neuronx_distributed/trace/'
        'model_builder.py", line 746, in trace\n'
        "    key, bucket_rank, neff_bytes = future.result()\n"
        "RuntimeError: Compilation failure"
    )
    if knob("TELLS"):
        said += f"\nRuntimeError: refused with {os.environ[knob('TELLS')]}"
    print(f"\n{said}", flush=True)
    sys.exit(int(knob("EXIT", "1")))


def save(path: Path, size: int) -> None:
    """Write in pieces, so that a kill can hit the middle."""
    if path.name == knob("LEAVES_OUT"):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb", buffering=0) as file:
        for _ in range(16):
            file.write(os.urandom(size // 16))
            step()
    if knob("FULL"):
        with Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"0")


def main() -> None:
    args = arguments()
    config = neuron_config(vars(args))
    print("Loading configs...", flush=True)
    model = json.loads(Path(args.model_path, "config.json").read_text())
    directory = Path(args.compiled_model_path)
    directory.mkdir(parents=True, exist_ok=True)
    record = {name: model[name] for name in ARCHITECTURE} | {"neuron_config": config}
    text = json.dumps(record, indent=2, sort_keys=True)
    (directory / "neuron_config.json").write_text(text + "\n")
    log(f"Saving the neuron_config to {directory}/")

    lengths = nxdi_config.powers(128, config["seq_len"]) if config["enable_bucketing"] else [128]
    buckets = {
        "context_encoding_model": nxdi_config.context_buckets(config),
        "token_generation_model": lengths,
    }
    trace(buckets, config["batch_size"])
    log("Starting compilation for the priority HLO")
    log("'token_generation_model' is the priority model with bucket rank 0")
    compile_bucket("token_generation_model", 0, config)
    os.environ.pop("STAND_IN_HANG", None)
    log("Done compilation for the priority HLO in 45.15 seconds")
    log("Updating the hlo module with optimized layout")
    log("Starting compilation for all HLOs")
    for submodel, lengths in buckets.items():
        for bucket in range(len(lengths)):
            if (submodel, bucket) != ("token_generation_model", 0):
                compile_bucket(submodel, bucket, config)
    log("Finished Compilation for all HLOs in 49.70 seconds")
    log("Finished building model in 141.73 seconds")

    save(directory / "model.pt", 400_000)
    if config["save_sharded_checkpoint"]:
        log("Pre-sharding checkpoints.")
        for rank in range(config["local_ranks_size"]):
            save(directory / f"weights/tp{rank}_sharded_checkpoint.safetensors", 16_000)
    else:
        log("SKIPPING pre-sharding the checkpoints.")
    print("Compiling and tracing time: 141.73 seconds", flush=True)


if __name__ == "__main__":
    main()

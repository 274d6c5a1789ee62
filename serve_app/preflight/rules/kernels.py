"""Rules about NxDI's kernels: which flags go together, and with which chip, model and release."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import CTE_BLOCK_FLAGS, flag, flags
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.keys import CONFIG, at, given, model_type, since, switched

ATTENTION = "neuronx-distributed-inference modules/attention/attention_base.py"
GQA = "neuronx-distributed-inference modules/attention/gqa.py"
QKV = ("qkv_kernel_enabled", "qkv_nki_kernel_enabled")
BLOCK = "attn_block_tkg_nki_kernel_enabled"
CASCADED = "attn_block_tkg_nki_kernel_cascaded_attention"
UPDATE = "attn_block_tkg_nki_kernel_cache_update"
ALIASES = ("attn_tkg_nki_kernel_enabled", "attn_tkg_builtin_kernel_enabled")
KERNELS = (
    *QKV,
    "qkv_cte_nki_kernel_fuse_rope",
    "mlp_kernel_enabled",
    "mlp_tkg_nki_kernel_enabled",
    "quantized_mlp_kernel_enabled",
    "rmsnorm_quantize_kernel_enabled",
    "attn_kernel_enabled",
    BLOCK,
    "attn_block_cte_nki_kernel_enabled",
    *ALIASES,
    "k_cache_transposed",
    "out_proj_kernel_enabled",
    "strided_context_parallel_kernel_enabled",
    "moe_fused_nki_kernel_enabled",
    "router_topk_nki_kernel_enabled",
    "expert_mlp_nki_kernel_enabled",
    "shared_mlp_nki_kernel_enabled",
)
"""Flags that switch a kernel on."""
_TRN2_ONLY = (
    *QKV,
    "mlp_kernel_enabled",
    "quantized_mlp_kernel_enabled",
    BLOCK,
    *ALIASES,
    "k_cache_transposed",
)
"""Kernels that AWS's recipes use from trn2 on only."""
_FUSED_SINCE: dict[str, str | None] = {
    "qwen3": "0.9",
    "gemma3": "0.9",
    "mixtral": None,
    "mistral": None,
}
"""NxDI release from which the model's weights can be fused; None: in none of the public ones."""


_RESIDUAL = ("", "llama", "llama4", "llama4_text")
"""Models whose decoder reads the flags of the residual add; "": not known."""


class Needs(NamedTuple):
    """`flag` switched on needs one of `any_of` switched on."""

    flag: str
    any_of: tuple[str, ...]
    source: str
    mend: str = ""


_NEEDS = (
    Needs("qkv_cte_nki_kernel_fuse_rope", ("qkv_kernel_enabled",), f"{CONFIG}:424-426"),
    Needs("qkv_cte_nki_kernel_fuse_rope", ("qkv_nki_kernel_enabled",), f"{CONFIG}:424-426"),
    Needs(BLOCK, QKV, f"{CONFIG}:453-456"),
    Needs(UPDATE, (BLOCK,), f"{CONFIG}:470-474"),
    Needs(CASCADED, (BLOCK,), f"{CONFIG}:470-474"),
    Needs(
        "rmsnorm_quantize_kernel_enabled", ("quantized_mlp_kernel_enabled",), f"{CONFIG}:546-550"
    ),
    Needs("qkv_kernel_fuse_residual_add", ("qkv_kernel_enabled",), "modeling_llama.py:1011"),
)


@rule(
    "kernel-needs",
    Severity.ERROR,
    "A kernel flag has the flags that it needs",
    f"{CONFIG}:424-426, 453-456, 470-474, 546-550; models/llama/modeling_llama.py:1005-1017",
    NXDI,
)
def kernel_needs(case: Case) -> Iterator[Trip]:
    for need in _NEEDS:
        if not flag(given(case), need.flag) or flags(kernel_flags(case), need.any_of):
            continue
        if "residual" in need.flag and model_type(case) not in _RESIDUAL:
            continue  # of this another rule speaks
        words = " or ".join(need.any_of)
        yield Trip(f"{need.flag} needs {words}", f"set {need.any_of[0]}: true", at(case, need.flag))


def kernel_flags(case: Case) -> dict[str, object]:
    """The effective flags; before NxDI 0.9 a deprecated flag sets no other."""
    config = dict(case.effective)
    if not since(case, "0.9"):
        config |= {name: given(case).get(name) for name in (BLOCK, *CTE_BLOCK_FLAGS)}
        if not given(case).get("mlp_kernel_enabled"):
            config["mlp_kernel_enabled"] = False
    return config


def _fuses(case: Case) -> bool:
    first = _FUSED_SINCE.get(model_type(case), "0")
    return first is not None and since(case, first)


@rule(
    "kernel-fused-qkv",
    Severity.ERROR,
    "The QKV kernels need fused weights",
    f"{GQA}:496-497; {CONFIG}:437-444 (activation quantization turns fused_qkv off)",
    NXDI,
)
def kernel_fused_qkv(case: Case) -> Iterator[Trip]:
    on = switched(case, *QKV)
    fused = flag(given(case), "fused_qkv")
    lost = given(case).get("activation_quantization_type") is not None and since(case, "0.8")
    # DBRX always fuses; of models that cannot, another rule speaks.
    if not on or model_type(case) == "dbrx" or not _fuses(case):
        return
    if not fused:
        yield Trip(f"{' and '.join(on)} without fused_qkv", "set fused_qkv: true", at(case, on[0]))
    elif lost:
        message = f"activation_quantization_type turns fused_qkv off, which {on[0]} needs"
        yield Trip(message, f"remove {' and '.join(on)}", at(case, on[0]))


@rule(
    "kernel-model-fused",
    Severity.ERROR,
    "The model's weights can be fused",
    "neuronx-distributed-inference models/*/modeling_*.py (convert_state_dict_to_fused_qkv); "
    "dense Qwen3 has it from c63afe0 (2.29) on, Mixtral and Mistral in no public release",
    NXDI,
)
def kernel_model_fused(case: Case) -> Iterator[Trip]:
    kind = model_type(case)
    on = switched(case, "fused_qkv", *QKV)
    if on and not _fuses(case):
        first = _FUSED_SINCE[kind]
        message = f"NxDI {case.target.stack.nxdi} cannot fuse the Q, K and V weights of {kind}"
        mend = f"remove {', '.join(on)}"
        mend += f", or take an SDK with NxDI {first} (2.29)" if first else ""
        yield Trip(message, mend, at(case, on[0]))


@rule(
    "kernel-model-qwen3",
    Severity.WARNING,
    "Dense Qwen3 has kernels from NxDI 0.9 on",
    "models/qwen3/modeling_qwen3.py: no kernel flag is read in 2.27 and 2.28; a build with "
    "kernels on Qwen3-8B was reported to fail on 2.27",
    NXDI,
)
def kernel_model_qwen3(case: Case) -> Iterator[Trip]:
    if model_type(case) != "qwen3" or since(case, "0.9"):
        return
    for name in switched(case, "mlp_kernel_enabled", "attn_kernel_enabled", BLOCK):
        message = f"{name} on dense Qwen3 is unproved with NxDI {case.target.stack.nxdi}"
        yield Trip(message, "remove it, or take SDK 2.29", at(case, name))


@rule(
    "kernel-chip",
    Severity.ERROR,
    "The chip has the kernels",
    "aws-neuron-sdk release-notes/components/nxd-inference.rst, 2.29.0, Breaking Changes",
    NXDI,
)
def kernel_chip(case: Case) -> Iterator[Trip]:
    instance = case.target.instance
    if instance.generation > 1:
        return
    if since(case, "0.9"):
        for name in switched(case, *KERNELS):
            message = f"no NKI kernels on {instance.family} with SDK {case.target.stack.sdk}"
            yield Trip(f"{name}: {message}", "pin stack.sdk: 2.28, or remove it", at(case, name))
        return
    for name in switched(case, *_TRN2_ONLY):
        message = f"{name} is used in AWS's recipes from trn2 on only, not on {instance.family}"
        yield Trip(message, "remove it", at(case, name), Severity.WARNING)


@rule(
    "kernel-block-cte",
    Severity.ERROR,
    "The deprecated context block kernel comes with all of its parts",
    f"{CONFIG}:482-506 (2.29); 445-455 (2.27, 2.28)",
    NXDI,
)
def kernel_block_cte(case: Case) -> Iterator[Trip]:
    name = "attn_block_cte_nki_kernel_enabled"
    own = given(case)
    if not flag(own, name):
        return
    if since(case, "0.9"):
        # attn_kernel_enabled is null unless given, and that passes.
        off = [
            key for key in CTE_BLOCK_FLAGS if own.get(key, key == "attn_kernel_enabled") is False
        ]
        off += [key for key in CTE_BLOCK_FLAGS if key not in own and key != "attn_kernel_enabled"]
        words = [*dict.fromkeys(off)]
    else:
        words = [] if flag(own, BLOCK) else [BLOCK]
        words += [] if flags(own, QKV) else [QKV[0]]
    if words:
        message = f"{name} needs {', '.join(words)}"
        yield Trip(message, "set them to true; the flag itself is deprecated", at(case, name))


@rule(
    "kernel-one-decode",
    Severity.ERROR,
    "Before NxDI 0.9 one decode attention kernel is on",
    f"{CONFIG}:456-464 (2.27, 2.28)",
    NXDI,
)
def kernel_one_decode(case: Case) -> Iterator[Trip]:
    on = switched(case, BLOCK, *ALIASES)
    if len(on) > 1 and not since(case, "0.9"):
        yield Trip(f"{' and '.join(on)} exclude each other", f"keep {on[0]} only", at(case, on[1]))


@rule(
    "kernel-deprecated",
    Severity.WARNING,
    "Deprecated kernel flags have successors",
    f"{CONFIG}:429-433, 457-468",
    NXDI,
)
def kernel_deprecated(case: Case) -> Iterator[Trip]:
    if not since(case, "0.9"):
        return
    for name in switched(case, *ALIASES):
        yield Trip(f"{name} is deprecated", f"write {BLOCK}", at(case, name))
    for name in switched(case, "mlp_tkg_nki_kernel_enabled"):
        yield Trip(f"{name} is deprecated", "write mlp_kernel_enabled", at(case, name))


@rule(
    "kernel-decode-excludes",
    Severity.ERROR,
    "Decode attention kernels go without flash decoding",
    f"{CONFIG}:521-537",
    NXDI,
)
def kernel_decode_excludes(case: Case) -> Iterator[Trip]:
    on = switched(case, BLOCK, *ALIASES)
    if on and flag(case.effective, "flash_decoding_enabled"):
        message = f"{on[0]} does not go with flash_decoding_enabled"
        yield Trip(message, "remove one of them", at(case, on[0]))


@rule(
    "kernel-k-transposed",
    Severity.ERROR,
    "A transposed K cache goes with a contiguous cache",
    f"{CONFIG}:526-540; modules/kvcache/kv_cache_manager.py:266, 513, 538",
    NXDI,
)
def kernel_k_transposed(case: Case) -> Iterator[Trip]:
    if not flag(case.effective, "k_cache_transposed"):
        return
    excluded = {
        "flash_decoding_enabled": ("flash decoding", "remove flash_decoding_enabled"),
        "is_block_kv_layout": ("the block KV layout", "set engine.enable_prefix_caching: false"),
        "is_medusa": ("Medusa", "remove is_medusa"),
    }
    for name, (words, mend) in excluded.items():
        if flag(case.effective, name):
            message = f"k_cache_transposed does not go with {words}"
            yield Trip(message, f"{mend}, or remove it", at(case, "k_cache_transposed"))
    if case.neuron("padding_side") == "left":
        message = "k_cache_transposed does not go with padding_side left"
        yield Trip(message, "remove padding_side", at(case, "k_cache_transposed"))


@rule(
    "kernel-residual",
    Severity.ERROR,
    "A fused residual add goes without sequence parallelism",
    "models/llama/modeling_llama.py:461-463, 1008-1010, 1023-1025",
    NXDI,
)
def kernel_residual(case: Case) -> Iterator[Trip]:
    known = model_type(case) in _RESIDUAL
    if not flag(case.effective, "sequence_parallel_enabled") or not known:
        return
    on = switched(case, "qkv_kernel_fuse_residual_add")
    if flags(kernel_flags(case), ("mlp_kernel_enabled", "quantized_mlp_kernel_enabled")):
        on += switched(case, "mlp_kernel_fuse_residual_add")
    for name in on:
        message = f"{name} does not go with sequence_parallel_enabled"
        yield Trip(message, f"remove {name}", at(case, name))


@rule(
    "kernel-residual-idle",
    Severity.WARNING,
    "A fused residual add has its kernel and its model",
    "models/llama/modeling_llama.py:1022; no other decoder but Llama's reads the flags",
    NXDI,
)
def kernel_residual_idle(case: Case) -> Iterator[Trip]:
    mlp, kind = "mlp_kernel_fuse_residual_add", model_type(case)
    if kind not in _RESIDUAL:
        for name in switched(case, "qkv_kernel_fuse_residual_add", mlp):
            yield Trip(f"{name} does nothing with {kind}", "remove it", at(case, name))
    elif flag(given(case), mlp) and not flag(kernel_flags(case), "mlp_kernel_enabled"):
        yield Trip(f"{mlp} does nothing without mlp_kernel_enabled", "remove it", at(case, mlp))


@rule(
    "kernel-qwen3-moe",
    Severity.ERROR,
    "Qwen3-MoE takes the block kernel with cascaded attention",
    "models/qwen3_moe/modeling_qwen3_moe.py:534-537",
    NXDI,
)
def kernel_qwen3_moe(case: Case) -> Iterator[Trip]:
    on = model_type(case) == "qwen3_moe" and flag(kernel_flags(case), BLOCK)
    if on and not flag(case.effective, CASCADED):
        yield Trip(
            f"{BLOCK} on Qwen3-MoE needs {CASCADED}", f"set {CASCADED}: true", at(case, BLOCK)
        )

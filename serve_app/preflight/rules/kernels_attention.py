"""Rules about NxDI's attention kernels: windows, strides and bucket sizes."""

from __future__ import annotations

from collections.abc import Iterator

from serve_app.config.findings import Severity
from serve_app.neuron.nxdi_config import context_buckets, flag, integer
from serve_app.preflight.case import NXDI, Case, Trip, rule
from serve_app.preflight.rules.kernels import ATTENTION, BLOCK, CASCADED, QKV, kernel_flags
from serve_app.preflight.rules.keys import CONFIG, at, given, switched


@rule(
    "kernel-strided",
    Severity.ERROR,
    "The strided context parallel kernel can be used in every bucket",
    f"{CONFIG}:446-447; {ATTENTION}:948-979 (raises where it cannot)",
    NXDI,
)
def kernel_strided(case: Case) -> Iterator[Trip]:
    name = "strided_context_parallel_kernel_enabled"
    if not flag(case.effective, name):
        return
    cp, path = integer(case.effective, "cp_degree") or 1, at(case, name)
    if cp <= 1:
        yield Trip(f"{name} needs cp_degree over 1", f"set cp_degree, or remove {name}", path)
        return
    if case.effective.get("attn_kernel_enabled") is False:
        return
    if case.target.lnc < 2:
        yield Trip(f"{name} needs LNC 2, not {case.target.lnc}", f"remove {name}", path)
    head = case.model.head_dim if case.model else None
    short = [b for b in context_buckets(case.effective) if head and b // cp <= head]
    if short:
        message = f"{name}: context bucket {short[0]} / cp_degree {cp} is not over head_dim {head}"
        yield Trip(message, f"give context buckets over {(head or 0) * cp}", path)
    if case.model and case.model.sliding_window:
        yield Trip(f"{name} does not go with a sliding window", f"remove {name}", path)


@rule(
    "kernel-window",
    Severity.ERROR,
    "Speculation with a sliding window needs cascaded attention",
    f"{ATTENTION}:243-244",
    NXDI,
)
def kernel_window(case: Case) -> Iterator[Trip]:
    window = case.model.sliding_window if case.model else None
    if not window or not flag(case.effective, "enable_fused_speculation"):
        return
    if not (flag(kernel_flags(case), BLOCK) and flag(case.effective, CASCADED)):
        message = f"speculation on a model with a sliding window ({window}) needs {CASCADED}"
        yield Trip(message, f"set {BLOCK} and {CASCADED}", "engine.speculative_config")


@rule(
    "kernel-attention-idle",
    Severity.WARNING,
    "The attention kernel fits the context buckets",
    f"{ATTENTION} get_flash_attention_strategy: LNC 2 from 1024 tokens in multiples of 512, below "
    "in multiples of 256; LNC 1 from 512; elsewhere it is silently off",
    NXDI,
)
def kernel_attention_idle(case: Case) -> Iterator[Trip]:
    if given(case).get("attn_kernel_enabled") is not True:
        return
    if (integer(case.effective, "cp_degree") or 1) > 1:
        return
    idle = [b for b in context_buckets(case.effective) if not _attention(b, case.target.lnc)]
    if idle:
        buckets = ", ".join(map(str, idle))
        message = f"attn_kernel_enabled has no effect in context buckets {buckets}"
        mend = "give context_encoding_buckets in multiples of 512"
        yield Trip(message, mend, at(case, "attn_kernel_enabled"))


def _attention(bucket: int, lnc: int) -> bool:
    if lnc < 2:
        return bucket >= 512
    return bucket % 512 == 0 if bucket >= 1024 else bucket % 256 == 0


@rule(
    "kernel-small-buckets",
    Severity.NOTE,
    "Kernels with small buckets",
    "aws-neuron-sdk trn2-llama3.3-70b-tutorial.rst names numerical errors (1003) with buckets up "
    "to 1024; AWS's own cards use buckets from 256 with the same kernels",
    NXDI,
)
def kernel_small_buckets(case: Case) -> Iterator[Trip]:
    on = switched(case, *QKV, "mlp_kernel_enabled")
    small = [b for b in context_buckets(case.effective) if b <= 1024]
    if on and small and case.target.instance.generation > 1:
        message = f"kernels with context bucket {small[0]} may end in a numerical error (1003)"
        mend = "if they do, start context_encoding_buckets at 2048"
        yield Trip(message, mend, at(case, "context_encoding_buckets"))

"""The rules, by topic. Importing this package registers them all."""

from serve_app.preflight import disaggregation  # noqa: F401  (registers its rules)
from serve_app.preflight.case import RULES, Rule
from serve_app.preflight.rules import (  # noqa: F401  (each registers its rules)
    arguments,
    batch,
    chunked_prefill,
    cores,
    kernels,
    kernels_attention,
    keys,
    lora,
    memory,
    native,
    parallelism,
    prefix_caching,
    quantization,
    sampling,
    sequence,
    speculation,
    stack,
)

__all__ = ["RULES", "Rule"]

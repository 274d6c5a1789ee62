"""The objective: so many of the requests have their first token within so many seconds."""

from __future__ import annotations

TARGET_S = 2.5
"""A bucket of vllm:time_to_first_token_seconds in vLLM 0.13 to 0.29 (vllm/v1/metrics/loggers.py):
another target must be one, too."""
OBJECTIVE = 0.99
"""Share of the requests, over 30 days."""
BUDGET = round(1 - OBJECTIVE, 6)
"""Share of the requests that may be slower."""
_TTFT = "ray_vllm_time_to_first_token_seconds"


def slower_than_target(where: str, by: str, window: str) -> str:
    """PromQL: the share of requests in the window whose first token came after the target."""
    within = ", ".join(filter(None, (where, f'le="{TARGET_S}"')))
    return (
        f"(1 - sum by ({by}) (rate({_TTFT}_bucket{{{within}}}{window})) / "
        f"sum by ({by}) (rate({_TTFT}_count{{{where}}}{window})))"
    )

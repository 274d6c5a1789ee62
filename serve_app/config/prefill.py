"""The section `prefill`: prompts on engines of their own."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from serve_app.config.faults import Faults
from serve_app.config.sections import (
    EngineArguments,
    Environment,
    Limits,
    Resources,
    Scaling,
    Strict,
)


class Transfer(Strict):
    """How the KV cache gets from a prefill engine to a decode engine: by NIXL."""

    connector: Literal["NixlConnector", "NeuronNixlConnector"] = Field(
        default="NixlConnector",
        description="vLLM's connector, the same at both ends. `neuron`: NeuronNixlConnector for "
        "sliding windows and decode context parallelism.",
    )
    backend: Literal["UCX", "LIBFABRIC"] | None = Field(
        default=None,
        description="Transport below NIXL. Default: LIBFABRIC (EFA) on Neuron, UCX on `cpu`.",
    )
    port: int = Field(
        default=5600,
        ge=1024,
        le=65000,
        description="First TCP port of the engines' side channels (VLLM_NIXL_SIDE_CHANNEL_PORT). "
        "Each engine of a node takes the next ones.",
    )
    lease_s: int = Field(
        default=30,
        ge=6,
        description="Seconds that a prefill engine keeps a KV cache which no decode engine has "
        "asked for (kv_lease_duration). Once one has, it renews the lease while it waits.",
    )


class Prefill(Strict):
    """Engines of their own for prompts; the engine beside this block then only generates."""

    engine: EngineArguments = Field(
        default_factory=dict,
        description="Engine arguments of the prefill engines where they differ from `engine`; "
        "null goes back to vLLM's default.",
    )
    instance: str | None = Field(
        default=None,
        description="EC2 instance type of a prefill replica. Default: the same as for decode.",
    )
    resources: Resources | None = Field(
        default=None, description="What one prefill replica takes. Default: the same as decode's."
    )
    scaling: Scaling = Field(
        default=Scaling(), description="How many prefill replicas. `scaling` beside counts decode."
    )
    limits: Limits = Field(
        default=Limits(), description="When a prefill replica lets requests wait or refuses them."
    )
    env: Environment = Field(
        default_factory=dict,
        description="Environment of the prefill replicas, over `env`. A value may be ${NAME}.",
    )
    min_prompt_tokens: int = Field(
        default=0,
        ge=0,
        description="Shorter prompts stay on the decode engine. Text counts as one token per four "
        "bytes. Default 0: every prompt is prefilled elsewhere.",
    )
    routing: Literal["tokens", "session"] = Field(
        default="tokens",
        description="Which prefill replica: `tokens`, the one with the fewest prompt tokens under "
        "way; `session`, always the same one for the header x-session-id or the field "
        "prompt_cache_key, where the prefix is cached, and `tokens` for requests without.",
    )
    timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="Seconds that a request waits for its prefill, queue included; then "
        "`fallback`.",
    )
    fallback: Literal["decode", "error"] = Field(
        default="decode",
        description="When no prefill replica answers: `decode` lets the decode engine prefill; "
        "`error` answers 503. `error` also refuses what cannot be split (n > 1, several prompts, "
        "prompt_logprobs) and spares a `neuron` decode engine its prefill graphs.",
    )
    transfer: Transfer = Field(default=Transfer(), description="How KV caches travel.")

    @field_validator("scaling")
    @classmethod
    def _never_none(cls, scaling: Scaling) -> Scaling:
        if scaling.min_replicas == 0:
            # No prompt waits for a replica that is not there, so none would ever be started.
            mend = "use 1, or remove prefill"
            raise Faults([("min_replicas", "there is at least one prefill replica", mend)])
        return scaling

    @model_validator(mode="after")
    def _never_by_itself(self) -> Prefill:
        if self.fallback == "error" and self.min_prompt_tokens:
            raise ValueError("min_prompt_tokens lets decode prefill, which fallback error forbids")
        return self

"""The sections of `args:`. Each field says its unit, default and reason."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from serve_app.config.environment import references
from serve_app.config.faults import Faults
from serve_app.config.findings import did_you_mean
from serve_app.config.vllm_arguments import OWNED, every_argument


class Strict(BaseModel):
    """Unknown keys are errors, values are never coerced, instances never change."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, defer_build=True
    )


class Model(Strict):
    """Which weights, and under which name clients ask for them."""

    id: str = Field(
        min_length=1,
        description="Name that clients put into `model`; also the hub repository unless "
        "`source` says otherwise.",
    )
    source: str | None = Field(
        default=None,
        description="Hub repository (`org/name`), local directory, or `builtin:demo` for the "
        "small model inside this package. Default: `id`. May hold ${NAME}.",
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit on the hub. Pin a commit in production. "
        "Default: the repository's main branch.",
    )
    tokenizer: str | None = Field(
        default=None,
        description="Hub repository or directory of the tokenizer. Default: the model's own. "
        "May hold ${NAME}.",
    )

    aliases: list[str] = Field(
        default_factory=list,
        description="Further names that clients may use. Several applications may have the same "
        "alias: the front door shares its requests out among them.",
    )

    @property
    def where(self) -> str:
        """The place of the weights: `source`, or else `id`."""
        return self.source or self.id

    @property
    def names(self) -> list[str]:
        """All that clients may put into `model`, first the one that answers carry."""
        return [self.id, *(alias for alias in self.aliases if alias != self.id)]


class Resources(Strict):
    """What one replica asks Ray for, and how much memory its KV cache may take."""

    num_cpus: float = Field(
        default=0.5,
        gt=0,
        description="CPUs that Ray reserves per replica. On the `cpu` back end a fraction "
        "(default 0.5) lets one model run beside Serve's own actors on a 2-core laptop, and "
        "the engine uses all cores; a whole number bounds its threads to that many.",
    )
    memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="Host memory in GiB that Ray reserves per replica. Default: none reserved.",
    )
    logical_nc_config: Literal[1, 2] | None = Field(
        default=None,
        description="Physical NeuronCores per logical core on trn2 and later "
        "(NEURON_LOGICAL_NC_CONFIG). Default: 2 there, 1 on inf2 and trn1.",
    )
    kv_cache_gib: float = Field(
        default=1.0,
        gt=0,
        description="KV cache in GiB on the `cpu` back end (VLLM_CPU_KVCACHE_SPACE). Default 1: "
        "vLLM's own default takes a share of the whole machine.",
    )


class Scaling(Strict):
    """How many replicas: a fixed number, or a range that Ray Serve scales within."""

    num_replicas: int | None = Field(
        default=None, ge=1, description="Fixed number of replicas. Default 1."
    )
    min_replicas: int | None = Field(
        default=None, ge=0, description="Autoscaling: fewest replicas. 0 scales to zero."
    )
    max_replicas: int | None = Field(
        default=None, ge=1, description="Autoscaling: most replicas. Given: autoscaling is on."
    )
    target_ongoing_requests: float | None = Field(
        default=None,
        gt=0,
        description="Autoscaling: requests per replica to aim at. Default: max_num_seqs, "
        "the batch that one engine runs at a time.",
    )

    @model_validator(mode="after")
    def _fixed_or_range(self) -> Scaling:
        ranged = self.min_replicas is not None or self.target_ongoing_requests is not None
        if self.num_replicas is not None and (ranged or self.max_replicas is not None):
            raise ValueError("give num_replicas, or min_replicas and max_replicas, not both")
        if ranged and self.max_replicas is None:
            raise ValueError("autoscaling needs max_replicas")
        if self.max_replicas is not None and (self.min_replicas or 0) > self.max_replicas:
            raise ValueError("min_replicas is greater than max_replicas")
        return self

    @property
    def autoscaling(self) -> bool:
        return self.max_replicas is not None

    @property
    def most(self) -> int:
        """The greatest number of replicas there can be."""
        return self.max_replicas or self.num_replicas or 1


class Limits(Strict):
    """When a replica makes requests wait, and when it turns them away."""

    max_ongoing_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests that a replica accepts at a time. Default 2 x max_num_seqs, so "
        "that the engine always has the next batch at hand.",
    )
    max_queued_requests: int | None = Field(
        default=None,
        ge=1,
        description="Requests that wait beyond those; further ones are answered 503 with "
        "Retry-After. Default 2 x max_num_seqs.",
    )
    max_body_mib: float = Field(
        default=32.0, gt=0, description="Larger request bodies are answered 413. In MiB."
    )


class Stack(Strict):
    """Pins of the Neuron software; without them, the newest that serves the instance."""

    sdk: str | None = Field(
        default=None,
        pattern=r"^\d+\.\d+(\.\d+)?$",
        description='Neuron SDK, for example "2.28". Quote it: YAML reads 2.30 as a number.',
    )


class Artifacts(Strict):
    """Compiled graphs: where they are kept, and what happens when they do not fit."""

    path: str | None = Field(
        default=None,
        description="`nxdi`: directory of the compiled model (NEURON_COMPILED_ARTIFACTS). Loaded "
        "when it is there and fits, else compiled into it. Without it, and without a store, every "
        "start compiles. May hold ${NAME}.",
    )
    store: str | None = Field(
        default=None,
        description="`nxdi`: where machines share compiled models, under a key of their shapes: a "
        "mounted directory or s3://bucket/prefix. A replica fetches from it into `path`. May hold "
        "${NAME}.",
    )
    compile_cache: str | None = Field(
        default=None,
        description="Compile cache: a directory, for `nxdi` also s3://bucket/prefix "
        "(NEURON_COMPILE_CACHE_URL); for `neuron` a local disk (VLLM_CACHE_ROOT). May hold "
        "${NAME}.",
    )
    cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="The most, in GiB, that models fetched from a store take on this machine; what "
        "was used longest ago goes first. Default: no limit.",
    )
    on_mismatch: Literal["fail", "compile"] = Field(
        default="fail",
        description="When what is compiled does not fit this configuration: `fail` refuses to "
        "start and names the fields; `compile` compiles anew beside it. Default fail: the "
        "plugin would load it without a look.",
    )
    frozen: bool = Field(
        default=False,
        description="A replica never compiles: it refuses to start when nothing is compiled "
        "(`nxdi`), or serves from the cache alone (`neuron`). For production.",
    )


class Startup(Strict):
    """How a replica starts. There is no time limit: a long load is never thrown away."""

    attempts: int = Field(
        default=1,
        ge=1,
        description="How often Serve tries to start the first replica before it gives up. "
        "Default 1: an error of the configuration shows at once and is not repeated.",
    )


class Health(Strict):
    """How a dead or frozen engine is found. Times in seconds."""

    probe_period_s: float = Field(
        default=10.0,
        gt=0,
        description="An engine that has shown no step for this long is asked for one token. "
        "A busy engine is never asked.",
    )
    probe_timeout_s: float = Field(
        default=20.0,
        gt=0,
        description="The engine counts as frozen when that token takes longer. Raise it where "
        "a graph may be compiled while serving.",
    )
    drain_timeout_s: float = Field(
        default=120.0,
        gt=0,
        description="How long a replica that is told to stop lets its streams finish.",
    )


def _known_arguments(engine: dict[str, Any]) -> dict[str, Any]:
    known = every_argument()
    faults = []
    for name, value in engine.items():
        if name in OWNED:
            faults.append((name, f"{name!r} is not set here", OWNED[name]))
        elif name not in known:
            mend = did_you_mean(name, known.keys() - OWNED.keys())
            faults.append((name, f"{name!r} is no argument of `vllm serve`", mend))
        elif wanted := known[name].refuses(value):
            message = f"{name!r} takes {wanted}, not {value!r} ({type(value).__name__})"
            faults.append((name, message, ""))
    if faults:
        raise Faults(faults)
    return engine


def _no_secrets(env: dict[str, str]) -> dict[str, str]:
    faults = []
    for name, value in env.items():
        secret = any(
            word in name.upper() for word in ("TOKEN", "KEY", "SECRET", "PASSWORD", "HEADERS")
        )
        if secret and value and not references(value):
            mend = f"write {name}: ${{{name}}} and set it where the replica runs"
            faults.append((name, f"{name} looks like a secret, in clear text", mend))
    if faults:
        raise Faults(faults)
    return env


EngineArguments = Annotated[dict[str, Any], AfterValidator(_known_arguments)]
"""Each key is an argument of some vLLM, its value of the right kind."""
Environment = Annotated[dict[str, str], AfterValidator(_no_secrets)]
"""Secrets come by reference only."""

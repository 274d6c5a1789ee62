"""Ray Serve's own config file (ServeDeploySchema), strict, with our `args:` typed.

Ray ignores unknown keys for the sake of newer versions; a typing error then does nothing,
silently. Here they are refused. A test compares the keys with the installed Ray's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from serve_app.config.cluster import Cluster
from serve_app.config.faults import Faults
from serve_app.config.findings import did_you_mean
from serve_app.config.front_door import FrontDoorArgs
from serve_app.config.model import AppArgs
from serve_app.config.sections import Strict

ENGINE, DECODE, PREFILL = "engine", "decode", "prefill"
FRONT_DOOR = "front-door"
"""Names of the deployments that hold engines; `deployments:` overrides refer to them. An
application has `engine`, or with a `prefill` section `decode` and `prefill`."""

DEPLOYMENT_KEYS = frozenset(
    {
        "name",
        "num_replicas",
        "max_ongoing_requests",
        "max_queued_requests",
        "backpressure_config",
        "user_config",
        "autoscaling_config",
        "graceful_shutdown_wait_loop_s",
        "graceful_shutdown_timeout_s",
        "health_check_period_s",
        "health_check_timeout_s",
        "ray_actor_options",
        "placement_group_bundles",
        "placement_group_strategy",
        "placement_group_bundle_label_selector",
        "max_replicas_per_node",
        "logging_config",
        "request_router_config",
        "gang_scheduling_config",
        "deployment_actors",
        "rolling_update_percentage",
        "max_surge_percent",
    }
)


class HttpOptions(Strict):
    """Where the HTTP front listens."""

    host: str = Field(default="0.0.0.0", description="Address to listen on. Ray's default: all.")
    port: int = Field(default=8000, ge=1, le=65535, description="TCP port. Default 8000.")
    root_path: str = Field(default="", description="Prefix that a proxy in front has cut off.")
    request_timeout_s: float | None = Field(
        default=None, description="Seconds until Serve ends a request. Default: never."
    )
    keep_alive_timeout_s: int = Field(default=90, description="Idle seconds of a connection.")
    ssl_keyfile: str | None = Field(default=None, description="TLS key file.")
    ssl_certfile: str | None = Field(default=None, description="TLS certificate file.")
    ssl_keyfile_password: str | None = Field(default=None, description="Password of the key.")
    ssl_ca_certs: str | None = Field(default=None, description="TLS certificate authorities.")


class _Application(Strict):
    """What Ray Serve knows of any application."""

    name: str = Field(default="default", min_length=1, description="Name of the application.")
    route_prefix: str | None = Field(
        default="/", pattern="^/", description="Path under which its routes stand."
    )
    deployments: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Ray Serve's own overrides of the deployments: `engine`, or with a `prefill` "
        "section `decode` and `prefill`; of the front door, `front-door`.",
    )
    runtime_env: dict[str, Any] = Field(
        default_factory=dict, description="Ray's runtime environment of the application."
    )
    host: str = Field(default="0.0.0.0", description="Unused by Serve: see http_options.")
    port: int = Field(default=8000, description="Unused by Serve: see http_options.")
    autoscaling_policy: dict[str, Any] | None = Field(
        default=None, description="Ray Serve's application-level autoscaling policy."
    )
    logging_config: dict[str, Any] | None = Field(
        default=None, description="Ray Serve's logging of this application."
    )
    external_scaler_enabled: bool = Field(
        default=False, description="Ray Serve's switch for an external scaler."
    )

    @property
    def deployment_names(self) -> tuple[str, ...]:
        """What `deployments:` may override."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _known_overrides(self) -> _Application:
        names = self.deployment_names
        faults = []
        for override in self.deployments:
            if override.get("name") not in names:
                given = override.get("name")
                mend = f"name it {' or '.join(map(repr, names))}"
                faults.append(("deployments", f"no deployment {given!r}", mend))
            for key in override.keys() - DEPLOYMENT_KEYS:
                mend = did_you_mean(key, DEPLOYMENT_KEYS)
                faults.append(("deployments", f"unknown key {key!r} of a deployment", mend))
        if faults:
            raise Faults(faults)
        return self


class Application(_Application):
    """One application: one model on one route prefix."""

    import_path: Literal["serve_app:build_app"] = Field(description="This package's builder.")
    args: AppArgs = Field(description="The model, its engine, and how it is served.")

    @property
    def deployment_names(self) -> tuple[str, ...]:
        return (DECODE, PREFILL) if self.args.prefill else (ENGINE,)


class FrontDoorApplication(_Application):
    """The front door: all models behind one `/v1`."""

    import_path: Literal["serve_app:build_front_door"] = Field(
        description="This package's builder of the front door."
    )
    args: FrontDoorArgs = Field(
        default=FrontDoorArgs(), description="How requests are shared out, and who may ask."
    )

    @property
    def deployment_names(self) -> tuple[str, ...]:
        return (FRONT_DOOR,)


class ServeFile(Strict):
    """The whole file, as `serve run` and `serve deploy` take it."""

    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = Field(
        default="EveryNode", description="On which nodes the HTTP front runs."
    )
    http_options: HttpOptions = Field(default=HttpOptions(), description="The HTTP front.")
    grpc_options: dict[str, Any] = Field(default_factory=dict, description="Ray Serve's gRPC.")
    controller_options: dict[str, Any] | None = Field(
        default=None, description="Ray Serve's controller."
    )
    logging_config: dict[str, Any] | None = Field(
        default=None, description="Ray Serve's logging, for example {encoding: JSON}."
    )
    tracing_config: dict[str, Any] | None = Field(default=None, description="Ray Serve's tracing.")
    target_capacity: float | None = Field(
        default=None, ge=0, le=100, description="Percent of the replicas to run."
    )
    applications: list[
        Annotated[Application | FrontDoorApplication, Field(discriminator="import_path")]
    ] = Field(min_length=1, description="The applications: models, and the front door if any.")
    cluster: Cluster = Field(
        default=Cluster(),
        description="For Kubernetes: what `neuron-serve render` makes of this file. Ray Serve "
        "ignores it.",
    )

    @property
    def models(self) -> list[Application]:
        """The applications that serve a model."""
        return [app for app in self.applications if isinstance(app, Application)]

    @property
    def front_doors(self) -> list[FrontDoorApplication]:
        return [app for app in self.applications if isinstance(app, FrontDoorApplication)]

    @field_validator("applications")
    @classmethod
    def _distinct(cls, applications: list[_Application]) -> list[_Application]:
        faults = []
        for field in ("name", "route_prefix"):
            values = [getattr(application, field) for application in applications]
            for value in sorted({v for v in values if v is not None and values.count(v) > 1}):
                faults.append(("", f"two applications have the {field} {value!r}", "change one"))
        if faults:
            raise Faults(faults)
        return applications

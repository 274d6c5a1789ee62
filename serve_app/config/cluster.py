"""The section `cluster`: what Kubernetes needs to know and Ray Serve does not."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from serve_app.config.sections import Strict

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
"""A name of Kubernetes (RFC 1123 label)."""


class Image(Strict):
    """Which container images run it."""

    repository: str = Field(
        default="neuron-serve",
        pattern=r"^[a-z0-9][a-z0-9._/:-]*[a-z0-9]$",
        description="Where scripts/build_images.sh pushed them, without a tag. Default: a name for "
        "kustomize's `images` to replace.",
    )
    tag: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        description="Tag. Default: this package's version and the software, for example "
        "0.1.0-nxdi-0.13.",
    )
    pull_secret: Name | None = Field(
        default=None, description="Secret with the registry's password. ECR needs none on EKS."
    )


class Head(Strict):
    """The pod of Ray's head: the controller, the dashboard, no model."""

    cpu: float = Field(default=4, gt=0, description="CPUs.")
    memory_gib: float = Field(default=16, gt=0, description="Memory in GiB, request and limit.")


class Storage(Strict):
    """Where weights and compiled models are kept."""

    claim: Name | None = Field(
        default="neuron-serve",
        description="PersistentVolumeClaim that all nodes share (EFS, FSx), with the weights and "
        "the store of compiled models. null: each pod keeps its own and loses it.",
    )
    storage_class: Name | None = Field(
        default="efs-sc", description="Storage class of that claim. null: the cluster's default."
    )
    size_gib: int = Field(default=1000, gt=0, description="Size of that claim; EFS ignores it.")
    local_gib: int = Field(
        default=400,
        gt=0,
        description="Node's disk that a worker pod may fill: models fetched or compiled, the "
        "compile cache. In GiB.",
    )


class Ingress(Strict):
    """The way in from outside the cluster: an Application Load Balancer."""

    host: str | None = Field(default=None, description="Host name. Default: any.")
    certificate_arn: str | None = Field(
        default=None,
        pattern=r"^arn:aws[a-z-]*:acm:[^:]+:\d{12}:certificate/.+$",
        description="TLS certificate in ACM. Without one it speaks plain HTTP, inside the VPC only.",
    )
    scheme: Literal["internal", "internet-facing"] = Field(
        default="internal", description="Who reaches it. internet-facing needs certificate_arn."
    )


class RedisGcs(Strict):
    """Redis that keeps the state of Ray's head, so that a lost head loses no replica."""

    address: str = Field(pattern=r"^rediss?://\S+$", description="redis://host:port")
    password_secret: Name | None = Field(
        default=None, description="Secret with the password under the key `password`."
    )


class Cluster(Strict):
    """`cluster:` of a config file. `neuron-serve render` reads it; Ray Serve does not."""

    name: Name | None = Field(
        default=None,
        description="Name of the RayService. Default: the file's, with `-` for `.`. At most 47 "
        "characters.",
    )
    namespace: Name = Field(default="neuron-serve", description="Namespace of all objects.")
    image: Image = Field(default=Image(), description="Container images.")
    head: Head = Field(default=Head(), description="The pod of Ray's head.")
    storage: Storage = Field(default=Storage(), description="Weights and compiled models.")
    quota: int | None = Field(
        default=None,
        ge=1,
        description="Neuron devices that this service may have at a time. An upgrade starts a "
        "second cluster beside the first only when both fit. Default: unknown, so it never does.",
    )
    efa: bool | None = Field(
        default=None,
        description="EFA interfaces for the workers. Default: where prefill and decode are apart.",
    )
    ingress: Ingress | None = Field(
        default=None, description="The way in from outside. Default: none."
    )
    gcs_fault_tolerance: RedisGcs | None = Field(
        default=None, description="Keep the head's state in Redis. Default: no."
    )
    monitoring: bool = Field(
        default=False, description="PodMonitors for the Prometheus operator. Default: no."
    )
    hugging_face_secret: Name | None = Field(
        default="hugging-face",
        description="Secret with a Hugging Face token under the key `token`; pods start without "
        "it, too.",
    )
    keys_secret: Name = Field(
        default="neuron-serve-keys",
        description="Secret whose entries become the files of `access.keys`' directory.",
    )
    env_secrets: list[Name] = Field(
        default_factory=list,
        description="Secrets whose entries become environment variables: what ${NAME} refers to.",
    )
    service_account_role: str | None = Field(
        default=None,
        pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$",
        description="IAM role of the pods (IRSA), for s3:// stores. Default: none, or EKS Pod "
        "Identity, which needs nothing here.",
    )

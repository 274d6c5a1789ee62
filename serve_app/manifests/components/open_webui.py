"""`components/open-webui`: a chat page for the overlay's service.

What the image can do without root: open-webui/open-webui issues 26662, 27651. Environment:
docs.openwebui.com/getting-started/env-configuration.
"""

from __future__ import annotations

from typing import Any

from serve_app.manifests.components.kustomize import (
    INSTANCE_LABEL,
    NAMESPACE,
    SERVICE,
    component,
    from_service,
)
from serve_app.manifests.tree import File, Object

NAME = "open-webui"
IMAGE = "ghcr.io/open-webui/open-webui:v0.11.4"
SECRET = "open-webui"
_PORT = 8080
_DATA = "/app/backend/data"

_COMPONENT = """\
Open WebUI for the overlay's RayService. In the overlay's kustomization.yaml:
  components: [../../components/open-webui]
Needs a default storage class and a Secret beside the RayService; the key of the API is one
of `access.keys` and may be left out where the service asks for none:
  kubectl -n <namespace> create secret generic open-webui \\
    --from-literal=webui-secret-key=$(openssl rand -hex 32) \\
    --from-literal=openai-api-key=<key>
Then: kubectl -n <namespace> port-forward service/<name>-open-webui 8080
The first account becomes the administrator. After the first start the address and the key
are Open WebUI's own settings (Admin Panel, Settings, Connections): later changes go there.
An Ingress of your own needs WebSockets and an idle timeout of 3600 s, as in ../alb-ingress.
"""

_DEPLOYMENT = """\
NAME and the namespace come from the overlay's RayService.
Recreate: the volume is ReadWriteOnce and SQLite is on it, so there is never a second pod.
User 1000 of group 0: from v0.11 the image's files belong to group 0; any other group cannot
write them. The root file system stays writable: the image writes beside its code at start.
"""


def files() -> tuple[File, ...]:
    replacements = from_service(
        f"{SERVICE}-{NAME}",
        {
            "Deployment": [
                INSTANCE_LABEL,
                r"spec.selector.matchLabels.app\.kubernetes\.io/instance",
                f"spec.template.{INSTANCE_LABEL}",
                "spec.template.spec.volumes.[name=data].persistentVolumeClaim.claimName",
                f"spec.template.spec.containers.[name={NAME}].env.[name=SERVE_SERVICE].value",
            ],
            "Service": [INSTANCE_LABEL, r"spec.selector.app\.kubernetes\.io/instance"],
            "PersistentVolumeClaim": [INSTANCE_LABEL],
        },
    )
    return (
        component(
            NAME,
            ["deployment.yaml", "service.yaml", "claim.yaml"],
            replacements,
            _COMPONENT,
        ),
        File(
            f"components/{NAME}/deployment.yaml",
            (_deployment(),),
            _DEPLOYMENT,
        ),
        File(f"components/{NAME}/service.yaml", (_service(),), "Inside the cluster only."),
        File(
            f"components/{NAME}/claim.yaml",
            (_claim(),),
            "Accounts, chats and uploads. The cluster's default storage class; EBS will do.",
        ),
    )


def _labels() -> Object:
    return {
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/instance": SERVICE,
        "app.kubernetes.io/component": NAME,
    }


def _metadata(**more: Any) -> Object:
    return {"name": f"{SERVICE}-{NAME}", "namespace": NAMESPACE, "labels": _labels(), **more}


def _secret(variable: str, key: str, optional: bool) -> Object:
    reference = {"name": SECRET, "key": key, "optional": optional}
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _environment() -> list[Object]:
    plain = {
        # Kubernetes puts the one into the other: kustomize replaces only what begins a text.
        "SERVE_SERVICE": f"{SERVICE}-serve-svc",
        "OPENAI_API_BASE_URL": "http://$(SERVE_SERVICE):8000/v1",
        "ENABLE_OLLAMA_API": "false",
        "DATA_DIR": _DATA,
        "STATIC_DIR": f"{_DATA}/static",
        "HOME": _DATA,
        # Else Open WebUI sends 26,000 characters of tools of its own with every message; a
        # service without enable_auto_tool_choice answers that with 400.
        "DEFAULT_MODEL_METADATA": '{"capabilities": {"builtin_tools": false}}',
        # One request per message: these are further prompts to the same model.
        "ENABLE_TITLE_GENERATION": "false",
        "ENABLE_TAGS_GENERATION": "false",
        "ENABLE_FOLLOW_UP_GENERATION": "false",
        # A whole answer, in seconds; without it there is no limit.
        "AIOHTTP_CLIENT_TIMEOUT": "3600",
        "ENABLE_VERSION_UPDATE_CHECK": "false",
        "ANONYMIZED_TELEMETRY": "false",
        "DO_NOT_TRACK": "true",
        "SCARF_NO_ANALYTICS": "true",
    }
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        _secret("OPENAI_API_KEY", "openai-api-key", optional=True),
        # Without it the image makes one up and cannot write it down without root.
        _secret("WEBUI_SECRET_KEY", "webui-secret-key", optional=False),
    ]


def _deployment() -> Object:
    probe = {"httpGet": {"path": "/health", "port": "http"}}
    container: Object = {
        "name": NAME,
        "image": IMAGE,
        "ports": [{"name": "http", "containerPort": _PORT}],
        "env": _environment(),
        # The first start migrates the database and may fetch an embedding model.
        "startupProbe": {**probe, "periodSeconds": 10, "failureThreshold": 60},
        "readinessProbe": {**probe, "periodSeconds": 10, "timeoutSeconds": 5},
        "livenessProbe": {**probe, "periodSeconds": 30, "timeoutSeconds": 10},
        "resources": {"requests": {"cpu": "500m", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": _DATA},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 0,
            "fsGroup": 0,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": f"{SERVICE}-{NAME}"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
        ],
    }
    secrets = f"{SECRET} (keys openai-api-key, webui-secret-key)"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(annotations={"neuron-serve/secrets": secrets}),
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": _labels()},
            "template": {"metadata": {"labels": _labels()}, "spec": pod},
        },
    }


def _service() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(),
        "spec": {
            "selector": _labels(),
            "ports": [{"name": "http", "port": _PORT, "targetPort": "http"}],
        },
    }


def _claim() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "20Gi"}},
        },
    }

"""neuron-serve: LLMs on AWS Neuron or CPU, served by Ray Serve and vLLM.

`serve_app:build_app` and `serve_app:build_front_door` are the import paths of config files.
Importing this package, or `serve_app.config`, loads neither ray nor torch nor vllm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application

__all__ = ["build_app", "build_front_door"]


def build_app(args: dict[str, Any]) -> Application:
    """Build the Ray Serve application of one model from the file's `args:`.

    Raises:
        serve_app.config.ConfigError: `args` is not a valid configuration.
    """
    from serve_app.deployments.graph import build_application

    return build_application(args)


def build_front_door(args: dict[str, Any] | None = None) -> Application:
    """Build the Ray Serve application that makes all others one `/v1`.

    Raises:
        serve_app.config.ConfigError: `args` is not a valid configuration.
    """
    from serve_app.deployments.graph import build_front_door_application

    return build_front_door_application(args or {})

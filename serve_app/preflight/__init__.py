"""Pre-flight: what can be known to go wrong before anything starts. No ray, no vllm."""

from serve_app.preflight.check import check_application, check_document

__all__ = ["check_application", "check_document"]

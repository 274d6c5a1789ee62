"""What can be known to go wrong before anything starts."""

from serve_app.preflight.check import check_application, check_document, memory_of

__all__ = ["check_application", "check_document", "memory_of"]

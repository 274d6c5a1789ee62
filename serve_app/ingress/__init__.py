"""What stands between Ray Serve and vLLM's app."""

from serve_app.ingress.errors import answer_in_openai_form

__all__ = ["answer_in_openai_form"]

"""The engine of one replica: weights, vLLM's AsyncLLM, and vLLM's own ASGI app."""

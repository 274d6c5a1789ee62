"""Load on an OpenAI endpoint, its figures by LLMPerf's names, and the report of them."""

"""Whatever answers the requests of a rewriting: vLLM, an OpenAI-compatible server, transformers."""

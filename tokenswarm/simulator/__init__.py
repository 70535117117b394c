"""The embedded engine: a batching model behind the wire formats of vLLM and Ollama, and the truth about what it sent.

Read in this order: presets (parameters), engine (the model, pure), text, asks and asks_typed (bodies in), wire_openai,
wire_ollama and wire_typed (bytes out), answer (one request), faults, metrics, truth, server (the one timer), routes,
command.
"""

from tokenswarm.simulator.command import main

__all__ = ["main"]

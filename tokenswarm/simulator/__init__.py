"""The embedded engine: a batching model behind the wire formats of vLLM and Ollama, and the truth about what it sent.

Read in this order: presets (parameters), batching (the model, pure), text, asks, asks_typed (bodies in), wire_openai,
wire_ollama and wire_typed (bytes out), answer (one request), stream (its tokens), faults, metrics, truth, server, pacer
(the one clock), routes, command.
"""

from tokenswarm.simulator.command import main

__all__ = ["main"]

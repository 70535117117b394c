"""Long-lived processes that Prometheus scrapes: one command a file, one small HTTP server (`serving.py`) for all.

Start one with `python -m exporters.gpu` (or `.ollama`, `.load`). They never import what generates the load.
"""

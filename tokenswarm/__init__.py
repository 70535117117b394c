"""tokenswarm: distributed load testing for LLM servers. Read the files in the order of docs/architecture.md."""

__version__ = "0.1.0"

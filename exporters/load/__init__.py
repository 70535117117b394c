"""Counts of runs for Prometheus: `command.py` is `python -m exporters.load`."""

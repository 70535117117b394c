"""NVML and host metrics: `command.py` is `python -m exporters.gpu`."""

"""What this machine can measure, and how truthfully: `python -m bench` writes bench/RESULTS.md.

Clients (one process, one core each) read streams of a sender (C, the other core) that knows when it sent what.
"""

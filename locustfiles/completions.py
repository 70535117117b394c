"""Closed loop, text completions: each user sends one single prompt after another.

locust -f locustfiles/completions.py --headless -u 50 -r 50 -t 2m --host http://localhost:8000 --dataset alpaca.json
"""

from tokenswarm.cluster import plugin  # noqa: F401  hooks Locust's events
from tokenswarm.cluster.users import ReplayUser


class Completions(ReplayUser):
    """One concurrent prompt."""

    api = "completions"
    conversations = "single"

"""Open loop, chat: requests come at a rate, whatever became of the ones before.

locust -f locustfiles/arrivals.py --headless --rate 20 --arrivals poisson -t 2m --host http://localhost:8000 \
    --dataset sharegpt.json
"""

from tokenswarm.cluster import plugin  # noqa: F401  hooks Locust's events
from tokenswarm.cluster.users import ReplayUser


class Arrivals(ReplayUser):
    """First turns of conversations, at the rate below unless --rate or a profile says another."""

    api = "chat"
    conversations = "single"
    rate = 10.0

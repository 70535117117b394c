"""Closed loop, chat: each user replays conversations turn by turn.

locust -f locustfiles/chat.py --headless -u 50 -r 50 -t 2m --host http://localhost:8000 --dataset sharegpt.json
"""

from tokenswarm.cluster import plugin  # noqa: F401  hooks Locust's events
from tokenswarm.cluster.users import ReplayUser


class Chat(ReplayUser):
    """One concurrent conversation."""

    api = "chat"
    conversations = "multi"

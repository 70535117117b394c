"""What came to the master's port and was kept out, in a few sentences and a count, and what broke there."""

from __future__ import annotations

from tokenswarm.errors import ConfigError, TargetError, UserError

SENTENCES_MAX = 16  # further ones are counted only: whoever sends a million messages must not fill the report


class Strangers:
    """What was kept out, in sentences: the first SENTENCES_MAX of them, and the number of all."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.refusal = ""  # the first of a worker
        self.workers = 0  # that said hello and were refused
        self.messages = 0  # that were dropped
        self.troubles: list[str] = []  # what broke at the port, in sentences
        self.named: set[str] = set()  # senders that a sentence tells of

    def refuse(self, sentence: str) -> None:
        self.workers += 1
        self.refusal = self.refusal or sentence
        self._say(sentence)

    def drop(self, sender: str, what: str) -> None:
        """A message that is not used; its sender is named once."""
        self.messages += 1
        if sender not in self.named and len(self.named) < SENTENCES_MAX:
            self.named.add(sender)
            self._say(f"somebody who is no worker of this run ({sender or 'without a name'}) sent {what}; not used")

    def too_few(self, here: int, wanted: int, seconds: float) -> UserError:
        """What ends a run whose workers did not come: if one was refused, that is why."""
        missing = f"only {here} of {wanted} workers came within {seconds:g} s"
        if self.refusal:
            return ConfigError(f"{missing}; {self.refusal}")
        return TargetError(f"{missing}; start the others, or fewer")

    def trouble(self, sentence: str) -> None:
        """Something at the port that good workers may have suffered from."""
        if len(self.troubles) < SENTENCES_MAX:
            self.troubles.append(sentence)

    def _say(self, sentence: str) -> None:
        if len(self.sentences) < SENTENCES_MAX:
            self.sentences.append(sentence)

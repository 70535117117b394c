"""From numbers to yes or no: may a run be believed (`verdict.py`, `rules/`), is it good enough (`gates.py`)."""

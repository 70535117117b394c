"""What came out of a run: `summary.py` has every formula, `envelope.py` is what a run pushes while it goes on."""

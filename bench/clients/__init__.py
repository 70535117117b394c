"""One client a file, one process each: `python -m bench.clients.NAME --port ...` prints one JSON line."""

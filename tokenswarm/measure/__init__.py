"""Bytes become numbers: the marks of a request, counting them in a worker, sketches, snapshots, statistics."""

"""One request on one connection: every byte is stamped in `transport.py`; `exchange.py` joins IO and the dialects."""

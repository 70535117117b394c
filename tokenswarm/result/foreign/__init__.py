"""Results of other tools, under their own definitions: a file a format, one row in the table of `formats.py`."""

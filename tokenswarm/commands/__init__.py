"""One command a file, each with `main(words) -> exit code`; `tokenswarm/cli.py` has the table."""

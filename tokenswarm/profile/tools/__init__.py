"""The tools whose commands `tokenswarm translate` takes, as of November 2026: a file a tool, or a family."""

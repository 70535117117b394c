"""`tokenswarm locustfile NAME`: where a bundled locustfile lies, for `locust -f $(tokenswarm locustfile chat)`."""

from __future__ import annotations

from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.profile import bundled, options
from tokenswarm.profile.typed_yaml import suggestion


def main(words: list[str]) -> int:
    """Print the path; raises ConfigError."""
    there = bundled.named("locustfile")
    parser = options.parser_of("locustfile")
    parser.add_argument("name", help=" or ".join(there))
    name = parser.parse_args(words).name
    if name not in there:
        raise ConfigError(f"locustfile: there is none called `{name[:40]}`{suggestion(name, list(there))}")
    print(there[name])
    return int(ExitCode.OK)

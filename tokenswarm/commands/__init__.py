"""One command a file, each with `main(words) -> exit code`; this is the table."""

COMMANDS: dict[str, tuple[str, dict[str, str]]] = {
    "run": (
        "tokenswarm.commands.run",
        {"run PROFILE": "replay a profile: master and workers on this machine, verdict, results folder"},
    ),
    "search": (
        "tokenswarm.commands.search",
        {"search PROFILE": "the largest rate, or number of users, that keeps the profile's limits"},
    ),
    "worker": ("tokenswarm.commands.worker", {"worker": "join the master of a run from another machine"}),
    "demo": (
        "tokenswarm.commands.demo",
        {"demo": "a short sweep of the bundled conversations against the embedded engine"},
    ),
    "observe": (
        "tokenswarm.commands.observe",
        {
            "observe [PROFILE]": "the same or your own profile, with Prometheus and all exporters around it, "
            "without Docker"
        },
    ),
    "simulate": (
        "tokenswarm.simulator",
        {"simulate": "the embedded engine: vLLM's and Ollama's wire formats, a batching model, the truth"},
    ),
    "data": (
        "tokenswarm.commands.data",
        {
            "data fetch NAME": "download sharegpt or alpaca (resumes, verifies)",
            "data info FILE": "what a data set holds, what is kept, what is dropped and why",
        },
    ),
    "calibrate": (
        "tokenswarm.commands.calibrate",
        {"calibrate": "this machine's own error and capacity, kept for the manifests of its runs"},
    ),
    "kv": (
        "tokenswarm.commands.kv",
        {"kv CONFIG_JSON": "KV-cache of a model: bytes a token, what fits, from its config.json"},
    ),
    "report": (
        "tokenswarm.commands.report",
        {
            "report DIR": "print a run's tables and write its report.html again; of one that goes on, so far",
            "report --merge": "DIR...: first bring back what dead workers, or a dead master, left on disk",
        },
    ),
    "profiles": (
        "tokenswarm.commands.profiles",
        {"profiles [NAME]": "bundled profiles, SLO files and locustfiles; the text of one"},
    ),
    "locustfile": ("tokenswarm.commands.locustfile", {"locustfile NAME": "where a bundled locustfile lies"}),
    "completion": ("tokenswarm.commands.completion", {"completion SHELL": "a script for bash, zsh or fish"}),
    "path": (
        "tokenswarm.commands.path",
        {"path": "what a proxy, router or gateway does to answers: the embedded engine behind it, a client before it"},
    ),
    "translate": (
        "tokenswarm.commands.translate",
        {"translate COMMAND": "another tool's command as a profile, and what of it has no equal"},
    ),
    "compare": (
        "tokenswarm.commands.compare",
        {"compare BASE …": "groups of runs against each other: better, worse, the same, or not to be told"},
    ),
    "trend": (
        "tokenswarm.commands.trend",
        {"trend FILE": "a history of runs over time: the latest against the usual, and when values changed for good"},
    ),
    "plan": (
        "tokenswarm.commands.plan",
        {"plan MEASURED …": "how many replicas of each kind carry a rate or a trace, at what cost and energy"},
    ),
}
"""A row a command: the module whose `main(words) -> exit code` it is, imported when asked for since some take long; and
what the help says of each way to use it."""

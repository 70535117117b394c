"""Groups of runs for a comparison: read from results folders, from files of other tools, from what `--save` wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import inf
from pathlib import Path

import msgspec

from tokenswarm.errors import MALFORMED, ConfigError
from tokenswarm.judge import alike
from tokenswarm.judge.compare import measured, percentiles
from tokenswarm.profile.profile import Profile
from tokenswarm.reports.manifest import redact
from tokenswarm.reports.saved import read_finished, read_manifest, read_summary, runs_in
from tokenswarm.result.comparison import RUNS_MAX, SCHEMA_VERSION, Group, Run
from tokenswarm.result.foreign import formats

GROUP_NAME = "group.json"


def read_runs(names: Sequence[str], side: str) -> list[Run]:
    """The runs of results folders, or of folders that hold such; each once. `side`: as a sentence names it.

    Raises ConfigError.
    """
    folders: dict[Path, None] = {}
    foreign: dict[str, Run] = {}
    for name in names:
        name = os.path.normpath(name)
        folder = Path(name)
        if (folder.is_file() or "#" in name) and folder.name != "summary.json" and (run := formats.read(name)):
            foreign[name] = run
        elif folder.is_dir() and not (folder / "summary.json").exists():
            inner = runs_in(folder)
            if not inner:
                below = " and ".join(str(side) for side in (folder / "a", folder / "b") if runs_in(side))
                mend = f"name its sides, {below}" if below else "name finished runs"
                raise ConfigError(f"{name}: holds no summary.json, and no folder that does; {mend}")
            folders.update(dict.fromkeys(inner))
        else:
            folders[(folder if folder.is_dir() else folder.parent).resolve()] = None
            if not folder.exists():
                read_summary(folder)  # says that there is none
    if len(folders) + len(foreign) > RUNS_MAX:
        raise ConfigError(f"compare: {side} has {len(folders) + len(foreign)} runs; {RUNS_MAX} are the most")
    return [*(read_run(folder) for folder in folders), *foreign.values()]


def same_words(base: list[Run], new: list[Run]) -> str:
    """The tool whose definitions hold, where files of one are among the runs; ours are then read by these.

    Raises ConfigError where several tools would have to agree, or a run of ours is no longer at hand.
    """
    tools = sorted({run.tool for run in (*base, *new)} - {""})
    if len(tools) > 1:
        raise ConfigError(
            f"compare: {' and '.join(tools)} mean different things by the same names; hold each against runs of ours"
        )
    if not tools:
        return ""
    for runs in (base, new):
        for number, run in enumerate(runs):
            if run.tool:
                continue
            if not Path(run.run_id).name or run.folder is None:
                raise ConfigError(
                    f"compare: {run.run_id} comes from a stored group, which has no {tools[0]} definitions"
                )
            values = formats.translated(read_summary(Path(run.folder)), tools[0])
            runs[number] = msgspec.structs.replace(run, values=values, percentiles={})
    return tools[0]


def read_run(folder: Path) -> Run:
    """A finished run of ours. Raises ConfigError where it can't stand for anything."""
    folder, summary, manifest = read_finished(folder)
    status = summary.verdict.status or "not judged"
    return Run(
        run_id=summary.run_id,
        values=measured(summary),
        about=alike.about(manifest, summary.requests_steady.by_model),
        status=status,
        started=str(manifest.get("started") or ""),
        percentiles=percentiles(summary),
        setup=alike.setup(manifest),
        folder=str(folder),
    )


def foreseen(profile: Profile, like: Run) -> Run:
    """A run of this profile before it is made; what only the run will know is as in `like`."""
    tree = msgspec.json.decode(msgspec.json.encode(redact(msgspec.to_builtins(profile))))
    about = alike.about({"profile": tree, "engine": {"model": profile.engine.model}}, {})
    for subject, keys in about.items():
        unknown = {key for key, value in keys.items() if value is None and not key.startswith("profile.")}
        keys |= {key: (like.about.get(subject) or {}).get(key) for key in unknown}
    return Run(run_id="this profile", values={}, about=about)


def read_group(path: Path) -> list[Run]:
    """The runs of a file that --save wrote, or of a folder: its group.json, else the runs in it. Raises ConfigError."""
    if path.is_dir():
        if not (path / GROUP_NAME).exists():
            return read_runs([str(path)], "--baseline")
        path = path / GROUP_NAME
    try:
        group = msgspec.json.decode(path.read_bytes(), type=Group)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    except MALFORMED as error:
        raise ConfigError(f"{path}: is no group of runs that `compare --save` wrote: {error}") from None
    if group.schema_version != SCHEMA_VERSION:
        raise ConfigError(f"{path}: has schema version {group.schema_version}, this program reads {SCHEMA_VERSION}")
    if not group.runs or len(group.runs) > RUNS_MAX:
        raise ConfigError(f"{path}: holds {len(group.runs)} runs; it takes 1 to {RUNS_MAX}")
    for run in group.runs:
        wrong = next((name for name, value in run.values.items() if value is not None and not 0 < value < inf), None)
        if wrong is not None:
            raise ConfigError(f"{path}: run {run.run_id[:80]}: `{wrong[:40]}` is no positive number; was it edited?")
        if run.tool and run.tool not in formats.FORMATS:
            raise ConfigError(f"{path}: run {run.run_id[:80]}: there is no tool `{run.tool[:40]}`")
    return [msgspec.structs.replace(run, folder=None) for run in group.runs]


def encoded(runs: Sequence[Run]) -> bytes:
    """The group as `--save` writes it; without folders, which may be elsewhere by then."""
    group = Group(runs=tuple(msgspec.structs.replace(run, folder=None) for run in runs))
    return msgspec.json.format(msgspec.json.encode(group)) + b"\n"


def check(base: Sequence[Run], new: Sequence[Run], point: Sequence[str]) -> None:
    """Are these runs alike in everything but the point, and two groups? Raises ConfigError."""
    both = sorted({run.run_id for run in base} & {run.run_id for run in new})
    if both:
        raise ConfigError(f"compare: run {both[0]} stands on both sides; a run can't be held against itself")
    for side, runs in (("BASE", base), ("--against", new)):
        for what, how in alike.differences(runs).items():
            raise ConfigError(f"compare: the runs of {side} differ in {what}: {how}; a group is one thing run again")
    for what, how in alike.differences([base[0], new[0]]).items():
        if what not in point:
            raise ConfigError(f"compare: the two sides differ in {what}: {how}; if that is the point: --differ {what}")


def check_history(name: str) -> None:
    """A history that can be appended to, told before the work. Raises ConfigError, ResultsError."""
    from tokenswarm.reports import history

    history.check(Path(name))


def remember_run(name: str, folder: Path) -> None:
    """A line of the run in that folder, whatever its verdict, at the end of a history. Raises UserError."""
    from tokenswarm.reports import history

    summary, manifest = read_summary(folder), read_manifest(folder)
    history.append(
        Path(name), [history.of_run(summary, measured(summary), percentiles(summary), manifest, alike.setup(manifest))]
    )

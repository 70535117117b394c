"""`tokenswarm plan MEASURED… --rate R | --trace FILE`: how many replicas of each kind, at what cost and energy."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tokenswarm.errors import ConfigError, ExitCode
from tokenswarm.judge import fleet
from tokenswarm.judge.search import Probe
from tokenswarm.load.trace import Trace, read_trace
from tokenswarm.profile import bundled, options
from tokenswarm.profile import profile as profiles
from tokenswarm.profile.slo import Slo
from tokenswarm.profile.typed_yaml import suggestion
from tokenswarm.reports.numbers import harmless
from tokenswarm.reports.saved import read_finished, runs_in
from tokenswarm.result.fleet import Demand, Kind, Plan
from tokenswarm.result.foreign.found import at
from tokenswarm.result.summary import Summary

KEYS = ("name", "price", "currency", "gpus", "power")
WINDOW = "1m"
RUNS_MAX = 50
GPUS_MAX = 10_000_000
NUMBER_MAX = 1e9  # of a rate, a price, a power
HELP = (
    "MEASURED is the results folder of a sweep or a search against one replica, or a folder of several; behind it, "
    "after commas, what the results don't know: name=H100,price=2.50 (of a GPU-hour),currency=USD,gpus=8 (of a replica)"
    ",power=700 (watts of a GPU, where it was not measured)."
)


def main(words: list[str]) -> int:
    """Plan; raises ConfigError, DatasetError."""
    parser = options.parser_of("plan")
    parser.description = HELP
    parser.add_argument("measured", nargs="+", metavar="MEASURED[,KEY=VALUE…]", help="a kind of replica, as measured")
    asked = parser.add_argument_group("what is asked for").add_mutually_exclusive_group(required=True)
    asked.add_argument("--rate", metavar="R", help="requests a second, at the peak")
    asked.add_argument("--trace", metavar="FILE", help="arrivals of a real service; its busiest window decides")
    parser.add_argument("--window", metavar="TIME", help=f"length of that window ({WINDOW})")
    parser.add_argument("--time-scale", metavar="X", help="of the time between arrivals of --trace (1)")
    parser.add_argument("--input-tokens", metavar="N", help="of a request of --rate, where it is not as measured")
    parser.add_argument("--output-tokens", metavar="N", help="the same of its answer")
    parser.add_argument("--slo", metavar="FILE", help="limits: a YAML file, or a bundled name; else those of the runs")
    parser.add_argument(
        "--headroom", metavar="SHARE", default="0", help="of each replica that stays free: 0.2, or 20%%"
    )
    parser.add_argument("--model", metavar="NAME", help="the model that is wanted; refuses runs of another")
    parser.add_argument("--differ", metavar="WHAT", default="", help="model: the kinds may serve different models")
    parser.add_argument(
        "--adjust-lengths", action="store_true", help="count longer or shorter requests as more or fewer measured ones"
    )
    forms = parser.add_argument_group("what is printed").add_mutually_exclusive_group()
    forms.add_argument("--json", action="store_true", help="the plan as JSON on stdout")
    forms.add_argument("--quiet", action="store_true", help="one line, for scripts")
    given = vars(parser.parse_args(words))
    plan = make(given)
    _print(plan, given)
    return int(_code(plan))


def make(given: Mapping[str, Any]) -> Plan:
    """The plan of the options. Raises ConfigError, DatasetError."""
    headroom = _share(given["headroom"])
    if given["differ"] not in ("", "model"):
        raise ConfigError(f"--differ {given['differ'][:40]}: only `model` may differ; lengths: --adjust-lengths")
    measured = [Measured(word) for word in given["measured"]]
    slo = _limits(given["slo"], measured)
    kinds = [one.kind(slo) for one in measured]
    _check(kinds, given)
    trace = None if given["trace"] is None else _trace(given)
    window_s, adjust = _window_s(given), given["adjust_lengths"]
    found = []
    for kind in kinds:
        if trace is None:
            rate = _positive("--rate", given["rate"])
            lengths = _lengths(given, kinds[0])
            demand = fleet.of_rate(rate, lengths, kind, adjust=adjust)
        else:
            demand = fleet.of_trace(*trace, window_s, kind, adjust=adjust)
        _alike(demand, kind, given)
        found.append(fleet.fleet(kind, demand, headroom))
        if (found[-1].gpus or 0) > GPUS_MAX:
            raise ConfigError(
                f"{kind.name}: {demand.peak:.4g} requests/s take more than {GPUS_MAX} GPUs; is that meant?"
            )
    return Plan(fleets=tuple(fleet.ranked(found)), limits=fleet.limits_of(slo), headroom=headroom)


class Measured:
    """One word of the command: a folder, and what was said of it."""

    def __init__(self, word: str) -> None:
        name, *pairs = re.split(rf",(?=(?:{'|'.join(KEYS)})=)", word)
        self.folder, self.said = Path(name), dict(pair.split("=", 1) for pair in pairs)
        odd = re.search(r",([A-Za-z_]+)=", name)
        if odd and not self.folder.exists():
            raise ConfigError(f"{word[:80]}: there is no key `{odd[1]}`{suggestion(odd[1], list(KEYS))}")
        if len(self.said) < len(pairs):
            raise ConfigError(f"{word[:80]}: says one thing twice")
        self.runs = [_read(folder) for folder in _folders(self.folder)]
        self.slos = [_slo_of(folder, manifest) for folder, _, manifest in self.runs]

    def kind(self, slo: Slo) -> Kind:
        """What it was measured to do, held to `slo`."""
        if slo.goodput_ratio is not None and any(_strict(known) != _strict(slo) for known in self.slos):
            raise ConfigError(f"{self.folder}: its goodput was counted under other limits; leave out `goodput_ratio`")
        limits = fleet.limits_of(slo)
        levels = [
            level
            for (_, summary, _), own in zip(self.runs, self.slos, strict=True)
            for level in fleet.levels_of(summary, limits, own=own == slo)
        ]
        if not levels:
            raise ConfigError(f"{self.folder}: holds no load that was measured; name a sweep, or a search")
        gpus, price, currency, notes = self._paid()
        if "power" in self.said:
            power_w = _positive(self._key("power"), self.said["power"]) * gpus
            levels = [msgspec.structs.replace(level, power_w=power_w) for level in levels]
        models = sorted({str(at(manifest, "engine", "model")) for _, _, manifest in self.runs})
        if len(models) > 1:
            raise ConfigError(f"{self.folder}: holds runs of several models: {', '.join(models)[:200]}")
        summaries = [summary for _, summary, _ in self.runs]
        return Kind(
            name=harmless(self.said.get("name") or self.folder.resolve().name, 40), model=models[0],
            levels=tuple(levels), gpus=gpus, price_per_gpu_hour=price, currency=currency,
            input_tokens=_mean(summaries, "input_length"), output_tokens=_mean(summaries, "output_length"),
            notes=(*(f"{name} is a limit of a whole run, and left out" for name in fleet.left_out(slo)), *notes,
                   *(f"{summary.run_id} is DEGRADED ({_codes(summary, 'degraded')})" for summary in summaries
                     if summary.verdict.status == "DEGRADED")),
        )  # fmt: skip

    def _paid(self) -> tuple[int, float | None, str, list[str]]:
        """GPUs of a replica, price of a GPU-hour, currency: as said, else as the runs have them; and a note."""
        _, summary, manifest = self.runs[0]
        gpus, price, currency = (
            at(manifest, "profile", "telemetry", name) for name in ("gpus", "price_per_gpu_hour", "currency")
        )
        notes = []
        told = self.said.get("gpus") or gpus or summary.gpu.get("count")
        if not told:
            notes.append("taken for one GPU a replica; gpus=N says how many")
        said = self._key("price") if "price" in self.said else f"{self.folder}: `telemetry.price_per_gpu_hour`"
        price = self.said.get("price", str(price) if price else None)
        price_per_hour = None if price is None else _positive(said, price)
        currency = harmless(str(self.said.get("currency") or currency or "USD"), 12)
        return _whole(self._key("gpus"), str(self.said.get("gpus", told or 1))), price_per_hour, currency, notes

    def _key(self, name: str) -> str:
        return f"{self.folder}: {name}="


def _slo_of(folder: Path, manifest: Mapping[str, Any]) -> Slo:
    try:
        return msgspec.convert(at(manifest, "profile", "slo") or {}, Slo, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{folder / 'manifest.json'}: `profile.slo` is none: {error}") from None


def _codes(summary: Summary, severity: str) -> str:
    return ", ".join(doubt.code for doubt in summary.verdict.doubts if doubt.severity == severity)


def _strict(slo: Slo) -> Slo:
    return msgspec.structs.replace(
        slo, goodput_ratio=None, failed_ratio=None, output_tokens_per_s=None, requests_per_s=None
    )


def _folders(folder: Path) -> list[Path]:
    """The folder itself, or the runs in it."""
    if not folder.is_dir() or (folder / "summary.json").exists():
        return [folder]
    inner = runs_in(folder)
    if not inner or len(inner) > RUNS_MAX:
        raise ConfigError(
            f"{folder}: holds {len(inner) or 'no'} runs; name a sweep, a search, or up to {RUNS_MAX} of them"
        )
    return inner


def _read(folder: Path) -> tuple[Path, Summary, dict[str, Any]]:
    """(folder, summary, manifest) of a run that may be believed. Raises ConfigError."""
    folder, summary, manifest = read_finished(folder)
    try:
        msgspec.convert(summary.search.get("probes", []), list[Probe])
    except msgspec.ValidationError as error:
        raise ConfigError(f"{folder / 'summary.json'}: `search.probes` is no list of tries: {error}") from None
    return folder, summary, manifest


def _limits(name: str | None, measured: Sequence[Measured]) -> Slo:
    """Of --slo, else of the runs, which must then have the same. Raises ConfigError."""
    if name is not None:
        path = bundled.find("SLO file", name)
        blank = profiles.load(
            "{target: http://a, dataset: {format: synthetic}}", path, (), (profiles.read_text(Path(path)), path)
        )
        found = [(name, blank.slo)]
    else:
        found = [(str(one.folder), slo) for one in measured for slo in one.slos]
    first = found[0]
    for other, slo in found:
        if slo != first[1]:
            raise ConfigError(f"{first[0]} and {other} were run with different limits; say which hold: --slo FILE")
    if not fleet.limits_of(first[1]):
        raise ConfigError(f"{first[0]}: has no limits, so any load would do; give --slo FILE, such as chat-interactive")
    return first[1]


def _check(kinds: Sequence[Kind], given: Mapping[str, Any]) -> None:
    """One model, one currency, a name each. Raises ConfigError."""
    names = [kind.name for kind in kinds]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two kinds are called {name}; tell them apart: MEASURED,name=…")
    for kind in kinds:
        wanted = given["model"] or kinds[0].model
        if kind.model != wanted and (given["model"] or given["differ"] != "model"):
            whose = "--model asks for" if given["model"] else f"{kinds[0].name} with"
            raise ConfigError(
                f"{kind.name} was measured with the model {kind.model}, {whose} {wanted}; measure that one"
                + ("" if given["model"] else ", or if they are to differ: --differ model")
            )
    currencies = sorted({kind.currency for kind in kinds if kind.price_per_gpu_hour is not None})
    if len(currencies) > 1:
        raise ConfigError(f"prices in {' and '.join(currencies)} can't be compared; give price=… and currency=… alike")


def _alike(demand: Demand, kind: Kind, given: Mapping[str, Any]) -> None:
    """Refuse lengths that were not measured. Raises ConfigError."""
    differ = fleet.apart(demand, kind)
    if differ and not given["adjust_lengths"]:
        what = f"{given['trace']}: its busiest window has" if given["trace"] else "the requests have"
        mend = (
            "measure it with --trace, which sends these lengths" if given["trace"] else "measure it with these lengths"
        )
        raise ConfigError(f"{what} {differ} ({kind.name}); {mend}, or say --adjust-lengths")


def _lengths(given: Mapping[str, Any], first: Kind) -> tuple[float | None, float | None]:
    """Mean tokens of prompt and answer that --rate is of: as said, else as the first kind was measured."""
    said = [given["input_tokens"], given["output_tokens"]]
    names = ("--input-tokens", "--output-tokens")
    told = [None if text is None else _positive(name, text) for name, text in zip(names, said, strict=True)]
    return told[0] or first.input_tokens, told[1] or first.output_tokens


def _trace(given: Mapping[str, Any]) -> tuple[fleet.Columns, float]:
    """The arrivals, and how long they last (s). Raises ConfigError, DatasetError."""
    if given["input_tokens"] or given["output_tokens"]:
        raise ConfigError("--input-tokens and --output-tokens go with --rate: a trace has its own lengths")
    scale = _positive("--time-scale", given["time_scale"] or "1")
    trace: Trace = read_trace(Path(given["trace"]), block_tokens=0)
    if max(trace.output_tokens) <= 1 and max(trace.input_tokens) <= 1:
        raise ConfigError(
            f"{given['trace']}: no row of it has any tokens, so nobody knows what they ask for; see --rate"
        )
    at_s = [at_s * scale for at_s in trace.at_s]
    return fleet.Columns(at_s, trace.input_tokens, trace.output_tokens), max(trace.span_s * scale, 1e-9)


def _window_s(given: Mapping[str, Any]) -> float:
    """Length of the window that decides. Raises ConfigError, also where there is none: a rate is the peak itself."""
    for name in ("window", "time_scale") if given["trace"] is None else ():
        if given[name] is not None:
            raise ConfigError(f"--{name.replace('_', '-')} goes with --trace: --rate is that of the peak already")
    text = given["window"] or WINDOW
    seconds = profiles.seconds(text, "--window")
    if not seconds >= 1:
        raise ConfigError(f"--window {text}: must be 1s or longer, or it counts single requests")
    return seconds


def _mean(summaries: Sequence[Summary], which: str) -> float | None:
    """Mean length over the requests of all steady windows; None where the engine told none."""
    stats = [stat for summary in summaries if (stat := getattr(summary.tokens, which)).mean is not None]
    n = sum(stat.n for stat in stats)
    total = sum(stat.mean * stat.n for stat in stats)
    return total / n if n and total else None


def _positive(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 / NUMBER_MAX < value < NUMBER_MAX:
        raise ConfigError(f"{name} {text[:40]}: must be a number above 0" + (", and below 1e9" if value > 1 else ""))
    return value


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:9]) > 0 and len(text) < 6):
        raise ConfigError(f"{name} {text[:40]}: must be a whole number of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise ConfigError(f"--headroom {text[:40]}: must be a share from 0 to less than 1, such as 0.2 or 20%")
    return value


def _code(plan: Plan) -> ExitCode:
    """0 where the best kind is sure to do, 12 where it may, 10 where none keeps the limits."""
    best = plan.fleets[0]
    if best.replicas is None:
        return ExitCode.INCONCLUSIVE if best.undecided else ExitCode.GATE_FAILED
    return ExitCode.OK if best.replicas_high is not None else ExitCode.INCONCLUSIVE


def _print(plan: Plan, given: Mapping[str, Any]) -> None:
    from tokenswarm.reports import fleet as told  # after the words, as rich takes a while
    from tokenswarm.reports import output

    if given["json"]:
        print(output.as_document(plan))
    elif given["quiet"]:
        print(told.line(plan))
    else:
        from rich.console import Console

        Console().print(told.report(plan))

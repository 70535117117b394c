"""junit.xml: a case for the verdict, and one for each gate, as every pipeline shows test results.

A failed gate is a failure, and so is one that could not be decided (type `inconclusive`): it may not pass in silence.
An INVALID or interrupted run is an error, and its gates are skipped: they say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as xml

from tokenswarm.reports import cells
from tokenswarm.reports.numbers import harmless
from tokenswarm.result.summary import Gate, Summary


def render(summary: Summary, manifest: Mapping[str, Any]) -> str:
    """junit.xml, valid against the schema of the Jenkins plugin; foreign text has no characters that XML forbids."""
    profile = manifest.get("profile") or {}
    name = harmless(str(profile.get("name", "run")))
    believed = summary.verdict.status in ("VALID", "DEGRADED") and not summary.partial
    cases = [_verdict(summary, name), *(_gate(gate, name, believed=believed) for gate in summary.gates)]
    counts = {kind: sum(case.find(kind) is not None for case in cases) for kind in ("failure", "error", "skipped")}
    told = {"tests": len(cases), "failures": counts["failure"], "errors": counts["error"]}
    time = f"{summary.duration_s:.3f}"
    root = _element("testsuites", name="tokenswarm", time=time, **told)
    started = harmless(str(manifest.get("started", ""))[:19])  # the schema's older readers know no time zone
    more = {"timestamp": started} if started else {}
    suite = _element("testsuite", name=name, time=time, skipped=counts["skipped"], **told, **more)
    facts = _element("properties")
    for key, value in {"run_id": summary.run_id, "facts": cells.facts(summary)}.items():
        facts.append(_element("property", name=key, value=harmless(value)))
    suite.extend([facts, *cases])
    root.append(suite)
    xml.indent(root)
    return xml.tostring(root, encoding="unicode", xml_declaration=False) + "\n"


def _element(tag: str, text: str = "", /, **attributes: object) -> xml.Element:
    element = xml.Element(tag, {key: str(value) for key, value in attributes.items()})
    element.text = text or None
    return element


def _verdict(summary: Summary, name: str) -> xml.Element:
    case = _element("testcase", name="verdict", classname=f"tokenswarm.{name}", time=f"{summary.duration_s:.3f}")
    status = summary.verdict.status or "not judged"
    doubts = [f"{doubt.severity} {doubt.code}: {harmless(doubt.message)}" for doubt in summary.verdict.doubts]
    if summary.partial or status not in ("VALID", "DEGRADED"):
        kind = "partial" if summary.partial else status
        first = doubts[0] if doubts else "the run was interrupted"
        case.append(_element("error", "\n".join(doubts), type=kind, message=f"{status}: {first}"))
    elif doubts:
        case.append(_element("system-out", "\n".join([status, *doubts])))
    return case


def _gate(gate: Gate, name: str, *, believed: bool) -> xml.Element:
    metric, limit, value, result, why = map(harmless, cells.gate_row(gate))
    case = _element("testcase", name=f"{metric} {limit}", classname=f"tokenswarm.{name}.gates", time="0")
    if not believed:
        case.append(_element("skipped", message="the run can't be believed, so this gate says nothing"))
    elif result != "pass":
        case.append(_element("failure", why, type=result, message=f"{metric} is {value}, the limit {limit}: {result}"))
    else:
        case.append(_element("system-out", f"{value}; {why}"))
    return case

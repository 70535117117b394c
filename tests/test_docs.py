"""What the pages name exists: commands and their options, profiles, files, links, headings. README.md and docs/*.md.

Commands in code blocks are given to the real parsers, and the profiles and overrides in them are read. Commands within
a sentence are often parts, so for these the command and each option are looked up.
"""

from __future__ import annotations

import argparse
import ast
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import yaml

from tokenswarm import cli
from tokenswarm.commands import fetch, observe
from tokenswarm.commands import run as run_command
from tokenswarm.profile import bundled, options, profile

REPO = Path(__file__).resolve().parent.parent
PAGES = {str(path.relative_to(REPO)): path.read_text("utf-8") for path in [REPO / "README.md", *REPO.glob("docs/*.md")]}
LOCUST = str(Path(sys.executable).parent / "locust")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROGRAM = r"(?:\.venv/bin/)?(?=(?:tokenswarm|locust|make|python -m) )"
START = re.compile(r"^\s*(?:- )?(?:run: )?(?:\$ )?(?:[A-Z_]+=(?:'[^']*'|\S*) )*" + PROGRAM)
INLINE = re.compile(r"``(.+?)``|`([^`]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
NAMED_FILE = re.compile(r"(?:configs|docs|tokenswarm|exporters|grafana|locustfiles|tests|bench|\.ci)/[\w.*/-]*")

EXAMPLES = {
    "tokenswarm/engines/llamacpp_completion.py",
    "tokenswarm/engines/NAME.py",
    "tokenswarm/load/NAME.py",
    "tokenswarm/load/traces/NAME.py",
    "tokenswarm/prompts/NAME.py",
    "tokenswarm/result/foreign/NAME.py",
    "tokenswarm/commands/NAME.py",
    "tokenswarm/profile/tools/NAME.py",
}
"""Files that a page tells its reader to write."""


def fences(page: str) -> Iterator[tuple[str, str]]:
    yield from ((match[1], match[2]) for match in FENCE.finditer(PAGES[page]))


def prose(page: str) -> str:
    return FENCE.sub("", PAGES[page])


def code_words(page: str) -> list[str]:
    return [(long or short).strip() for long, short in INLINE.findall(prose(page))]


def commands(page: str) -> list[list[str]]:
    """The commands of a page's code blocks, as words."""
    found = []
    for _, text in fences(page):
        for line in text.replace("\\\n", " ").splitlines():
            if match := START.match(line):
                words = shlex.split(re.split(r"\s(?:&&?|\|\|?|>>?|;)(?:\s|$)", line[match.end() :])[0], comments=True)
                found.append(words)
    return found


def of_all_pages(found: Any) -> list[Any]:
    return [pytest.param(page, thing, id=f"{page}: {thing}"[:80]) for page in PAGES for thing in found(page)]


# -- commands ------------------------------------------------------------------------------------------------------


class Parsed(BaseException):
    """The real parser took the words: go no further."""

    def __init__(self, given: dict[str, Any]) -> None:
        super().__init__()
        self.given = given


def parse(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the program makes of `tokenswarm WORDS`, up to where it would begin to act."""
    parse_args = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
        raise Parsed(vars(parse_args(self, *arguments)))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    try:
        code = cli.main(words)
    except Parsed as parsed:
        return parsed.given
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 0, capsys.readouterr().err  # --help, --version
    return {}


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    """The --help of a command, run once."""
    words = {"tokenswarm": [sys.executable, "-m", "tokenswarm.cli"], "locust": [LOCUST, "-f", "locustfiles/chat.py"]}
    start = words.get(command[0], [sys.executable, *command[1:2]])
    rest = command[1:] if command[0] in words else command[2:]
    done = subprocess.run([*start, *rest, "--help"], cwd=REPO, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Names(list[str]):
    """A parser that only remembers the options it is given."""

    def add_argument(self, name: str, **_: Any) -> None:
        self.append(name)


def check_options(command: tuple[str, ...], words: list[str]) -> None:
    """Each option among the words stands in the command's help, or is one that we add to Locust's."""
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", help_of(command)))
    if command[0] == "locust":  # its help is printed before it reads the locustfile, which adds ours
        options.add_arguments(ours := Names(), locust=True)
        known |= set(ours)
    for word in words:
        if re.match(r"--?[a-zA-Z]", word):
            assert word.partition("=")[0] in known, f"{' '.join(command)} has no {word}"


def check_make(words: list[str]) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text("utf-8"), re.MULTILINE))
    for word in words:
        assert "=" in word or word in targets, f"there is no target {word}"


def check_run(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile, the SLO file and the overrides of a `tokenswarm run` make a profile."""
    monkeypatch.chdir(REPO)
    if given["profile"] is None:
        run_command._data_set(given)
    elif given["profile"].isupper():  # a word that stands for any profile
        given["profile"] = "configs/profiles/smoke.yaml"
    pairs = [f"{key}={given[name]}" for key, name in (("target", "host"), ("workers", "workers")) if given[name]]
    options.read_profile(given["profile"], given, options.given({"set": pairs}))


@pytest.mark.parametrize(("page", "words"), of_all_pages(commands))
def test_command(
    page: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert page in PAGES
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] == "locust":
        if words[2] == "$(tokenswarm":
            words[2:5] = [str(bundled.named("locustfile")[words[4].rstrip(")")])]
        check_options(("locust",), words[1:])
        assert (REPO / words[words.index("-f") + 1]).is_file()
    elif words[0] == "python":
        assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
        if words[2].startswith(("exporters", "bench", "tokenswarm", "grafana")):
            check_options(("python", "-m", words[2]), words[3:])
    elif words[1] == "demo":
        check_options(("tokenswarm", "run"), words[2:])
    elif words[1] == "observe":
        check_options(("tokenswarm", "run"), observe.parse(words[2:]).words)
    else:
        given = parse(words[1:], monkeypatch, capsys)
        if words[1] == "run":
            check_run(given, monkeypatch)


def data_set(words: list[str]) -> str:
    """The data set of a command that sends load; "" where it says none, or is another command."""
    if "--dataset" in words:
        return words[words.index("--dataset") + 1]
    if words[0] != "tokenswarm" or words[1] not in ("run", "search", "observe") or len(words) < 3:
        return ""
    file = bundled.named("profile").get(words[2], REPO / words[2])
    return str(yaml.safe_load(file.read_text("utf-8"))["dataset"].get("path", "")) if file.is_file() else ""


def needs(page: str, wanted: str) -> list[tuple[bool, str]]:
    """(Does the page fetch it before?, the command) of each that sends the data set of this name."""
    fetched, found = False, []
    for words in commands(page):
        fetched |= words[:4] == ["tokenswarm", "data", "fetch", "sharegpt"]
        if data_set(words) == wanted:
            found.append((fetched, " ".join(words)))
    return found


def test_a_page_fetches_the_data_set_before_it_is_sent() -> None:
    """A stranger who types the commands in their order has what each of them needs."""
    found = [(page, *need) for page in PAGES for need in needs(page, fetch.KNOWN["sharegpt"].url.rpartition("/")[2])]
    assert len(found) > 15
    assert not [(page, command) for page, fetched, command in found if not fetched]


def partial_commands(page: str) -> list[str]:
    return sorted({word for word in code_words(page) if re.match(r"(tokenswarm|locust|make|python -m) [\w-]", word)})


@pytest.mark.parametrize(("page", "text"), of_all_pages(partial_commands))
def test_command_within_a_sentence(page: str, text: str) -> None:
    assert page in PAGES
    words = text.split()
    if words[0] == "make":
        check_make(words[1:])
    elif words[0] == "locust":
        check_options(("locust",), words[1:])
    elif words[0] == "python":
        assert importlib.util.find_spec(words[2]), f"there is no module {words[2]}"
    else:
        assert words[1] in cli.COMMANDS, f"there is no command {words[1]}"
        verb = words[1:3] if words[1] == "data" and len(words) > 2 else words[1:2]
        if len(words) > 1 + len(verb):
            check_options(("tokenswarm", *verb), words[1 + len(verb) :])


def test_every_command_is_in_a_page() -> None:
    everything = "\n".join(PAGES.values())
    for command in cli.COMMANDS:
        assert f"tokenswarm {command}" in everything, f"no page tells of `tokenswarm {command}`"


@pytest.mark.parametrize(
    "words", [["run", "configs/profiles/smoke.yaml", "--bogus"], ["run", "a", "b"], ["worker"], ["nothing"]]
)
def test_a_wrong_command_is_found(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(AssertionError, match="tokenswarm"):
        parse(words, monkeypatch, capsys)


# -- files, links, code --------------------------------------------------------------------------------------------


def named_files(page: str) -> list[str]:
    return sorted({word for word in code_words(page) if NAMED_FILE.fullmatch(word)} - EXAMPLES)


@pytest.mark.parametrize(("page", "name"), of_all_pages(named_files))
def test_named_file(page: str, name: str) -> None:
    assert page in PAGES
    assert list(REPO.glob(name.rstrip("/"))), f"{name} does not exist"


FILES = frozenset(
    str(path.relative_to(REPO))
    for root in ("", "tokenswarm/", "exporters/", "grafana/", "bench/", "tests/", "locustfiles/")
    for path in REPO.glob(f"{root}**/*.py" if root else "*.py")
)


def short_names(page: str) -> list[str]:
    """The Python files that a page names by the end of their path, where the sentence says the room."""
    found = {word for word in code_words(page) if re.fullmatch(r"[\w/]+\.py", word)}
    return sorted(found - EXAMPLES)


@pytest.mark.parametrize(("page", "name"), of_all_pages(short_names))
def test_named_python_file(page: str, name: str) -> None:
    assert page in PAGES
    assert any(f"/{path}".endswith(f"/{name}") for path in FILES), f"there is no {name}"


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).strip().replace(" ", "-")


def links(page: str) -> list[str]:
    return sorted({link for link in LINK.findall(prose(page)) if not re.match(r"[a-z]+:", link)})


@pytest.mark.parametrize(("page", "link"), of_all_pages(links))
def test_link(page: str, link: str) -> None:
    name, _, anchor = link.partition("#")
    target = (REPO / page).parent / name if name else REPO / page
    assert target.exists(), f"{link} leads nowhere"
    if anchor:
        headings = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text("utf-8")), re.MULTILINE)
        assert anchor in {slug(heading) for heading in headings}, f"{name} has no heading {anchor}"


def test_the_readme_leads_to_every_page_in_the_order_of_a_start() -> None:
    readme = PAGES["README.md"]
    for page in PAGES:
        assert page == "README.md" or f"]({page})" in readme, f"README.md does not lead to {page}"
    start = readme.partition("## Start here")[2]
    order = ["docs/profile.md", "docs/report.md", "docs/compare.md", "docs/metrics.md", "docs/loads.md"]
    places = [start.index(f"]({page})") for page in order]
    assert places == sorted(places)


def yaml_blocks(page: str) -> list[str]:
    return [text for kind, text in fences(page) if kind in ("yaml", "yml")]


@pytest.mark.parametrize(("page", "text"), of_all_pages(yaml_blocks))
def test_yaml(page: str, text: str) -> None:
    """A block is a profile, a part of one, or limits; one that is not begins with a comment that names its file."""
    if re.match(r"# [\w./-]+\.ya?ml\n", text):
        assert isinstance(yaml.safe_load(text), dict)
        return
    keys = set(yaml.safe_load(text))
    if keys == {"slo"}:
        profile.load("{target: http://a, dataset: {path: x}}", page, (), (text, page))
        return
    more = [
        f"{key}={value}" for key, value in (("target", "http://a"), ("dataset.path", "x")) if key[:6] not in str(keys)
    ]
    profile.load(text, page, options.given({"set": more}))


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_are_python(page: str) -> None:
    for kind, text in fences(page):
        if kind == "python":
            ast.parse(text)


@pytest.mark.parametrize("page", PAGES)
def test_prose_fits_a_screen_and_blocks_are_closed(page: str) -> None:
    assert PAGES[page].count("```") % 2 == 0
    for number, line in enumerate(PAGES[page].splitlines(), 1):
        assert len(line) <= 160 or line.startswith("|"), f"{page}:{number} has {len(line)} columns"

"""`tokenswarm data fetch NAME` and `tokenswarm data info FILE`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenswarm.commands.fetch import KNOWN, fetch, licence_note
from tokenswarm.errors import DatasetError, ExitCode
from tokenswarm.profile import options

if TYPE_CHECKING:
    from tokenswarm.prompts.info import DataInfo


def main(words: list[str]) -> int:
    """Run `data …`; raises UserError."""
    parser = options.parser_of("data")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="fetch|info")
    down = verbs.add_parser("fetch", help="download a data set; goes on where it stopped")
    down.add_argument("name", help=f"{', '.join(KNOWN)} or a URL")
    down.add_argument("--to", metavar="PATH", default=".", help="file to write, or folder with / at its end (here)")
    down.add_argument("--sha256", metavar="HEX", help="checksum of a URL's file")
    info = verbs.add_parser("info", help="rows kept and dropped and why, lengths")
    info.add_argument("file")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="a key of the profile's dataset")
    given = parser.parse_args(words)
    return _fetch(given) if given.verb == "fetch" else _info(given)


def _fetch(given: Any) -> int:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    note = licence_note(given.name)
    if note:
        console.print(note, soft_wrap=True, markup=False)
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task(given.name[-40:], total=None)

        def show(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total)

        fetched = fetch(given.name, _destination(given.to), given.sha256, show)
    state = "checksum right" if fetched.verified else f"sha256 {fetched.sha256}"
    print(f"{fetched.path} ({fetched.bytes} bytes, {state})")
    return int(ExitCode.OK)


def _destination(text: str) -> Path:
    """A file, or a folder: one that is there, or one that is written as such."""
    path = Path(text)
    if text.endswith("/"):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatasetError(f"--to {text}: can't be made: {error.strerror}") from None
    return path


def _info(given: Any) -> int:
    from tokenswarm.profile import typed_yaml
    from tokenswarm.profile.dataset import Dataset
    from tokenswarm.profile.environment import cache_folder
    from tokenswarm.prompts.from_profile import data_settings
    from tokenswarm.prompts.info import info_text
    from tokenswarm.prompts.library import open_library

    root = typed_yaml.parse("{}", "command line")
    typed_yaml.set_value(root, "path", typed_yaml.literal(given.file, "FILE"))
    for key, node in options.given({"set": given.set}):
        typed_yaml.set_value(root, key.removeprefix("dataset."), node)
    dataset = typed_yaml.read(root, Dataset, "dataset")
    info = open_library(data_settings(dataset, cache_folder())).info
    print(_json(info) if given.json else info_text(info))
    return int(ExitCode.OK)


def _json(info: DataInfo) -> str:
    import msgspec

    return msgspec.json.format(msgspec.json.encode(info), indent=2).decode()

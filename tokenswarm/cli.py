"""The command line: one word, one module. Mistakes of the user are one sentence and an exit code, no traceback."""

from __future__ import annotations

import contextlib
import errno
import importlib
import signal
import sys
from collections.abc import Sequence
from types import ModuleType

from tokenswarm import __version__, descriptors
from tokenswarm.commands import COMMANDS
from tokenswarm.errors import ConfigError, ExitCode, ResultsError, UserError
from tokenswarm.terminal import end_signals, outlive_listeners

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a share of it, a file


def usage() -> str:
    """What `tokenswarm --help` prints."""
    ways = "".join(f"  {words:17}  {about}\n" for _, said in COMMANDS.values() for words, about in said.items())
    return (
        f"usage: tokenswarm COMMAND [options]\n\n{ways}\n"
        "tokenswarm COMMAND --help explains each; plain `locust -f locustfiles/chat.py` works, too.\n"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return ExitCode.OK if words else ExitCode.CONFIG
    github: ModuleType | None = None
    try:
        if arguments is None:
            outlive_listeners()
        for number in end_signals():  # as Ctrl-C, until a command has handlers of its own
            signal.signal(number, signal.default_int_handler)
        descriptors.raise_limit()
        github = _surroundings()
        if words[0] == "--version":
            print(f"tokenswarm {__version__} ({_reader_name()} reader)")
            return ExitCode.OK
        if words[0] not in COMMANDS:
            from tokenswarm.profile import bundled
            from tokenswarm.profile.typed_yaml import suggestion

            run = f"; did you mean `tokenswarm run {words[0]}`?" if words[0] in bundled.named("profile") else ""
            raise ConfigError(f"there is no command `{words[0]}`{run or suggestion(words[0], list(COMMANDS))}")
        code = int(importlib.import_module(COMMANDS[words[0]][0]).main(words[1:]))
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(github, words[0], error)
    except KeyboardInterrupt:
        print(f"tokenswarm: {words[0]} was interrupted", file=sys.stderr, flush=True)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        return int(ExitCode.OK)
    except OSError as error:
        if error.filename is not None:
            return _say(github, words[0], ConfigError(f"{error.filename}: can't be used: {error.strerror}"))
        if error.errno not in _FULL:
            raise
        with contextlib.suppress(OSError):
            sys.stdout.close()  # else the interpreter tries once more to be rid of the rest
        return _say(github, words[0], ResultsError(f"stdout can't be written: {error.strerror}"))


def _say(github: ModuleType | None, word: str, error: UserError) -> int:
    from tokenswarm.reports.numbers import harmless

    print(f"tokenswarm: {harmless(str(error), 4_000)}", file=sys.stderr, flush=True)
    if github is not None:
        github.tell([github.annotation("error", f"tokenswarm {word}", str(error))], "", None)
    return int(error.exit_code)


def _surroundings() -> ModuleType | None:
    """What speaks with GitHub's runner, where this is a step of a workflow: from here on, it alone."""
    from tokenswarm.profile.environment import forget_no_width, in_github

    forget_no_width()
    if not in_github():
        return None
    from tokenswarm.reports.pipelines import github

    github.disarm_output()
    return github


def _reader_name() -> str:
    from tokenswarm.client.which_reader import reader_name

    return reader_name()


if __name__ == "__main__":
    sys.exit(main())

"""The command line that all entry scripts share: parsing of argv, error messages, exit codes.

``key=value`` and ``--key=value`` are settings (W&B agents pass the latter), ``--flag`` alone sets a boolean setting,
and each script declares its own options. Exit codes: 0 success, 2 a user error, 75 stopped by a scheduler (SIGTERM,
SIGUSR1) and resumable, 130 Ctrl-C.
"""

from __future__ import annotations

import difflib
import errno
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dinado.errors import ConfigError, UserError
from dinado.ranks import is_writer
from workbench import help
from workbench.launching import LAST_WORDS, exit_code_of, say
from workbench.plain_files import json_line
from workbench.settings import schema
from workbench.streams import accept_every_character, is_unicode

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO, errno.EACCES, errno.EPERM}
"""Error numbers of a disk that is full, broken or not writable for this user."""

N = TypeVar("N", int, float)
D = TypeVar("D")
C = TypeVar("C", bound=str)


@dataclass(frozen=True)
class Option:
    """A command-line option of a script: ``--name`` or, with a ``metavar``, ``--name VALUE``.

    With ``several``, the numbers that follow its value are more values of it: ``--name 1 0.5``, also ``--name 1,0.5``.
    """

    name: str
    help: str
    metavar: str = ""
    several: bool = False

    @property
    def usage(self) -> str:
        return f"--{self.name} {self.metavar}".rstrip()


HELP = Option("help", "Print this page, or one section of it.", "[section]")
PRINT_CONFIG = Option("print-config", "Print the resolved settings and where each comes from, then stop.")
DRY_RUN = Option("dry-run", "Build everything, print the sizes, take no step.")
PROBE = Option("probe", "Judge 64 texts of the base, print the verdicts and settings that suit, train nothing.")
FAST_DEV_RUN = Option("fast-dev-run", "Run every stage once on very little data.")
RESUME = Option("resume", "Continue a run from its folder, runs/<experiment>/<run_id>.", "RUN")
CONTINUE = Option("continue", "Go on with the run that an earlier start of this job has left, or start it.")
JSON = Option("json", "Print the result as one JSON object on the last line of stdout.")


@dataclass
class Arguments:
    """The parsed command line.

    Attributes:
        positional: words that are neither options nor settings.
        overrides: ``key=value`` settings, without dashes, for ``loader.load``.
        options: value of each option that was given, True for one without a value.
        help: section that ``--help`` asks for; empty for the whole page, None without ``--help``.
    """

    positional: list[str] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)
    options: dict[str, str | bool] = field(default_factory=dict)
    help: str | None = None

    def flag(self, option: Option) -> bool:
        """Tell whether an option was given."""
        return option.name in self.options

    def value(self, option: Option) -> str | None:
        """Return the value of an option, None when it was not given."""
        value = self.options.get(option.name)
        return value if isinstance(value, str) else None


def parse(argv: Sequence[str], options: Sequence[Option] = (), settings: bool | Sequence[str] = True) -> Arguments:
    """Parse argv into positional words, options and settings.

    Args:
        argv: the words after the script's name.
        options: the options of the script; ``--help`` is always added.
        settings: whether the script takes ``key=value`` settings, or which ones.

    Raises:
        ConfigError: an option is unknown (the message names the nearest known one) or lacks its value.
    """
    known = {option.name: option for option in (*options, HELP)}
    found, words = Arguments(), list(argv)
    while words:
        word = "--help" if words[0] == "-h" else words[0]
        del words[0]
        name, equals, value = word.removeprefix("--").partition("=")
        option = known.get(name.replace("_", "-")) if word.startswith("--") else None
        if option is HELP:
            takes_next = words and not words[0].startswith("-") and "=" not in words[0]
            found.help = value if equals else words.pop(0) if takes_next else ""
        elif option and option.metavar:
            if not equals and (not words or words[0].startswith("--")):
                raise ConfigError(f"--{option.name} needs a value: {option.usage}")
            given = [value if equals else words.pop(0)]
            while option.several and words and _is_number(words[0]):
                given.append(words.pop(0))
            if option.several and isinstance(before := found.options.get(option.name), str):
                given.insert(0, before)
            found.options[option.name] = ",".join(given)
        elif option and equals:
            raise ConfigError(f"--{option.name} takes no value, got {value!r}")
        elif option:
            found.options[option.name] = True
        elif re.fullmatch(r"[A-Za-z_][\w.-]*", name) and (equals or _is_switch(word)):
            if settings is not True and name.replace("-", "_") not in (settings or ()):
                but = f" but {', '.join(settings)}" if settings else ""
                raise ConfigError(f"{word}: this command takes no settings{but}{_nearest(name, known, False)}")
            found.overrides.append(f"{name}={value}" if equals else f"{name}=true")
        elif word.startswith("-") and len(word) > 1:
            raise ConfigError(f"unknown option {word}{_nearest(name, known, settings is True)}")
        else:
            found.positional.append(word)
    return found


def run(
    main: Callable[[Arguments], int | None],
    usage: str,
    options: Sequence[Option] = (),
    settings: bool | Sequence[str] = True,
    argv: Sequence[str] | None = None,
) -> int:
    """Run a script's ``main`` on the parsed argv and return the exit code.

    This function answers ``--help``. It prints a :class:`~dinado.errors.UserError` as one line on stderr; any other
    exception is a bug and keeps its traceback.
    """
    # OpenMP reads this when torch is first imported: idle threads that spin cost a busy machine most of its speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    accept_every_character()
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv, options, settings)
        if arguments.help is not None:
            rows = [(option.usage, option.help) for option in (HELP, *options)]
            print(help.page(usage, rows, arguments.help or None, settings is True))
            return 0
        return main(arguments) or 0
    except UserError as error:
        say(f"error: {' '.join(str(error).split())}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        if is_writer():
            print("interrupted", file=sys.stderr)
        return exit_code_of(stop)
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename}: " if error.filename else ""
        say(f"error: {where}{error.strerror}; what was finished is kept: make room or name another folder, and resume")
        return 2
    except Exception:
        if LAST_WORDS not in os.environ:
            raise
        say(traceback.format_exc())
        return 1


def only(arguments: Arguments, count: int) -> None:
    """Refuse surplus positional words.

    Raises:
        ConfigError: there are more than ``count`` words that are neither options nor settings.
    """
    if len(arguments.positional) > count:
        raise ConfigError(f"{arguments.positional[count]}: one word too many; settings are key=value, see --help")


def number(arguments: Arguments, option: Option, kind: type[N], default: D, least: float | None = None) -> N | D:
    """Return the value of a numeric option, ``default`` when it was not given.

    Raises:
        ConfigError: the value is not a number of this kind, or it is below ``least``.
    """
    text = arguments.value(option)
    return default if text is None else _number(option, text, kind, least)


def numbers(arguments: Arguments, option: Option, kind: type[N], least: float | None = None) -> list[N] | None:
    """Return the values of a numeric option that takes several, None when it was not given.

    Raises:
        ConfigError: one of them is not a number of this kind, or it is below ``least``.
    """
    text = arguments.value(option)
    return None if text is None else [_number(option, part, kind, least) for part in _parts(text)]


def _number(option: Option, text: str, kind: type[N], least: float | None) -> N:
    wanted = "a whole number" if kind is int else "a number"
    wanted += "" if least is None else f" of {least:g} or more"
    try:
        value = kind(text)
    except ValueError:
        raise ConfigError(f"--{option.name} {text}: give {wanted}") from None
    if not math.isfinite(value) or (least is not None and value < least):
        raise ConfigError(f"--{option.name} {text}: give {wanted}")
    return value


def choice(arguments: Arguments, option: Option, choices: tuple[C, ...]) -> C:
    """Return the value of an option that is one of a few words, the first of them when it was not given.

    Raises:
        ConfigError: the value is another word.
    """
    text = arguments.value(option)
    for word in choices:
        if text in (None, word):
            return word
    raise ConfigError(f"--{option.name} {text}: choose {', '.join(choices[:-1])} or {choices[-1]}")


def print_json(record: Mapping[str, Any]) -> None:
    """Print the result of ``--json``; call this last, so that the result is the last line of stdout."""
    sys.stderr.flush()
    print(json_line(record, ascii_only=not is_unicode(sys.stdout)), flush=True)


def _is_number(word: str) -> bool:
    """Tell whether a word is a number, or several with commas between them."""
    try:
        return all(math.isfinite(float(part)) for part in _parts(word))
    except ValueError:
        return False


def _parts(text: str) -> list[str]:
    return re.split(r"[,\s]+", text.strip(", "))


def _is_switch(word: str) -> bool:
    """Tell whether a bare ``--word`` is a boolean setting."""
    leaf = schema.leaves().get(word.removeprefix("--").replace("-", "_"))
    return word.startswith("--") and leaf is not None and leaf.type_name == "bool"


def _nearest(name: str, known: Mapping[str, Option], settings: bool) -> str:
    close = difflib.get_close_matches(name.replace("_", "-"), known, n=1)
    if close:
        return f"; did you mean --{close[0]}?"
    key = name.replace("-", "_")
    if settings and key in schema.leaves():
        return f"; did you mean {key}=...?"
    return schema.nearest(key) if settings else f"; there are {', '.join('--' + other for other in known)}"

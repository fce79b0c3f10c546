"""What a user can do wrong, as one family of exceptions with readable messages.

Entry scripts print the message of a :class:`UserError` on one line and exit with its ``exit_code``;
anything else is our own mistake and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in what the user supplied. The message names the thing and the fix."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a wrong type or settings that contradict each other."""


class DataError(UserError):
    """Prompts or references that are missing, empty or malformed."""


class OracleError(UserError):
    """An oracle that could not be imported, raised, or returned something outside [0, 1]."""


class StoreError(UserError):
    """A rollout store that cannot be used as asked."""


class CheckpointError(UserError):
    """A run or checkpoint that is missing, incomplete, or belongs to another base model."""


class ProcessError(UserError):
    """Another process of the run failed; the message is what it said."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(KeyboardInterrupt):
    """A scheduler, not a person, wants the run to end: it may be started again as it is (EX_TEMPFAIL)."""

    exit_code = 75

"""The exceptions for mistakes of the user, with readable messages.

Entry scripts print the message of a :class:`UserError` on one line and exit with its ``exit_code``;
any other exception is our own mistake and keeps its traceback.
"""


class UserError(ValueError):
    """A mistake in the user's input; the message names the cause and the fix."""

    exit_code = 2


class ConfigError(UserError):
    """An unknown key, a wrong type or settings that contradict each other."""


class DataError(UserError):
    """Prompts or references that are missing, empty or malformed."""


class OracleError(UserError):
    """An oracle that could not be imported, raised, or returned something outside [0, 1]."""


class StoreError(UserError):
    """A rollout store that cannot be used as requested."""


class EngineError(UserError):
    """An inference server that is away, fails, or serves something else than the base."""


class CheckpointError(UserError):
    """A run or checkpoint that is missing, incomplete, or belongs to another base model."""


class ProcessError(UserError):
    """The failure of another process of the run, with the message of that process."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Stopped(KeyboardInterrupt):
    """A request to end the run by a scheduler, not a person; the run may be restarted unchanged (EX_TEMPFAIL)."""

    exit_code = 75

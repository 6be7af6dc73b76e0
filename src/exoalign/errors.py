"""The errors that a user can mend: each message says what was found, where, what was expected and what to do.

The command line prints them without a traceback and exits with code 2. Everything else that is raised is a bug.
"""


class ExoalignError(Exception):
    """Base of all errors that the caller can mend.

    Attributes:
        exit_code: what a command ends with.
    """

    exit_code: int = 2


class ConfigError(ExoalignError):
    """A recipe or an option is wrong."""


class DataError(ExoalignError):
    """A row, a file or a group of completions cannot be used."""


class ModelError(ExoalignError):
    """A model or a tokenizer cannot be loaded or used as asked."""


class RewardError(ExoalignError):
    """A reward function failed or returned something that is no reward."""


class JudgeError(RewardError):
    """A judge cannot be reached, refuses what it is asked, or the budget for it is spent."""


class TrainingError(ExoalignError):
    """Training cannot start, or cannot go on without producing wrong numbers."""


class StoreError(ExoalignError):
    """A run folder holds something else than this run, or is in use by another process."""


class Interrupted(ExoalignError):
    """A signal ended the work at a place where it can go on; nothing that comes after it may begin.

    Attributes:
        exit_code: 128 and the signal's number: 143 for SIGTERM, 130 for SIGINT.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def first_line(error: Exception) -> str:
    """The type of a library's error and the first line of what it says."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"

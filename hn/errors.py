"""The failures a user can mend, one class for each exit code.

Launchers flatten exit codes to 1, so the same number is written to `status.json` in the run's
folder. Each message says which setting or file, what was found, what is allowed, and what to do
next.
"""

INTERRUPTED = 75  # saved, can be resumed
BUG = 70  # anything that is not one of the classes below


class UserError(Exception):
    """A failure with a remedy; `exit_code` is the process's."""

    exit_code = BUG


class OptionError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""

    exit_code = 2


class DataError(UserError):
    """Pictures or captions that cannot be used."""

    exit_code = 3


class ModelError(UserError, ValueError):
    """A base model, hypernetwork or checkpoint file that cannot be used."""

    exit_code = 4


class StorageError(UserError):
    """A disk that is full, or a folder that cannot be written."""

    exit_code = 5


class NumericsError(UserError):
    """A loss or gradient that is not a finite number."""

    exit_code = 6


class DistributedError(UserError):
    """Processes that do not agree."""

    exit_code = 7

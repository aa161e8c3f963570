"""The two ways in which a run can fail; they end with different exit codes.

`InputError` (exit code 2) means the user asked for something impossible or gave something unreadable; it is raised
before anything is compiled. `RunError` (exit code 1) means that a valid run could not go on. Each carries one clear
sentence that names the field, the value and the remedy; what was saved before stays whole.
"""


class InputError(ValueError):
    """Bad input: an option, a file or a record. Names the field, the value and the remedy."""


class RunError(RuntimeError):
    """A run that started validly and could not go on, such as one whose losses became NaN."""

"""The errors that a user is meant to read, and the exit codes they end in.

A `UserError` carries one paragraph that names the offending value, the reason and the way out; the command line
prints it without a traceback. Anything else that escapes is a defect of ours and keeps its traceback.
"""

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2
EXIT_REQUEUE = 75


class UserError(Exception):
    """Something the user gave is wrong: the message names the value, the reason and the fix."""

    exit_code = EXIT_USER_ERROR


class RunStoppedError(UserError):
    """A run has saved itself and stopped because a rule says so: a person has to look before it goes on."""

    exit_code = EXIT_FAILURE

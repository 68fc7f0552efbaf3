"""The ways a command can end badly. `kvx.cli` turns them into one line and an exit code."""


class UserError(Exception):
    """A wrong request (exit 2).

    Its message is one line: what is wrong, in which field or file, and what to do.
    """


class RunFailedError(Exception):
    """The request was right but some of the work failed (exit 1); what could be done is done."""

    exit_code = 1


class UnfinishedError(RunFailedError):
    """What was looked at is not finished (exit 3); nothing went wrong."""

    exit_code = 3

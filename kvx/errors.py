"""The two ways a command can end badly. `kvx.cli` turns both into one line and an exit code."""


class UserError(Exception):
    """A wrong request (exit 2).

    Its message is one line: what is wrong, in which field or file, and what to do.
    """


class RunFailedError(Exception):
    """The request was right but some of the work failed (exit 1); what could be done is done."""

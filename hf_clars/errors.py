"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """Bad input: one line that says what was wrong, which value, and what to do.

    Command-line entry points print the message alone and exit with status 2; everywhere else it is a `ValueError`.
    """

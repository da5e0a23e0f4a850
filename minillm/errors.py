"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: one line that names the file, key or row and what to do.

    The command line prints it without a traceback and exits with 2.
    """

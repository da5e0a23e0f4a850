"""The one exception that users are meant to read."""


class UserError(Exception):
    """Something the user can fix: one line that names the file, key or row and says what to do.

    The command line prints it without a traceback and exits with 2.
    """

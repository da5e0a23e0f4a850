"""The one exception that users are meant to read."""

# Characters of a message.
LONGEST = 1000


class UserError(Exception):
    """Something the user can fix: one line that names the file, key or row and says what to do.

    The command line prints it without a traceback and exits with 2.
    """

    def __init__(self, message: object) -> None:
        # What a message quotes (a key, a value, another library's error) may have several lines, or be huge.
        line = " ".join(str(message).splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[:LONGEST]} ...")


class Diverged(UserError):
    """A training whose gradients, logits or samples have run away; a candidate of a grid is then lost."""

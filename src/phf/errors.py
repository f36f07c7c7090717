"""The one exception a user is meant to see."""


class PHFError(Exception):
    """A mistake in the input, said in one line: what (with the value), what would be valid, what to do.

    The command line prints it without a traceback and exits with code 2. Anything else that escapes is a bug.
    """

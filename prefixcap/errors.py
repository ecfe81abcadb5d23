"""The one exception that users are meant to read."""


class InputError(ValueError):
    """A mistake in what was given, told in one line: what is wrong, where, and what to do about it.

    The scripts print its message without a traceback and exit with status 2.
    """

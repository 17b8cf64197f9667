"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad input: the message is one line that names what is wrong and what to do.

    Entry points print it without a traceback and exit with code 2.
    """

"""The one exception that users are meant to see."""


class InnerVisionError(Exception):
    """Something the user can put right: the message says in one or two lines what is wrong and what to do.

    The command line prints the message without a traceback and exits with status 1.
    """

"""The wiring between the science and the four tools; you need not open it to use it."""


class StackError(Exception):
    """A mistake that the user can mend; the command line prints its one line and no traceback."""


class NoServiceError(StackError):
    """The store or the gateway can't be used now, or not with this key; one in this project can stand in."""

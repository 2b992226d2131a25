"""The one exception for anything the user can mend."""


class UserError(ValueError):
    """Says in one sentence what is wrong, where, and what to do; scripts print it and exit with 1."""

"""The base of every error that ends a run with one message: what happened, what was wanted, and what to do.

launch.py prints its text and no stack trace. An error that is not a RunError is a fault of the program.
"""


class RunError(RuntimeError):
    """A run cannot go on; the text tells the user why, and what to do."""

"""What goes wrong for a person: one line, and never a traceback."""

__all__ = ["Mistake"]


class Mistake(Exception):
    """Of the user's, or a refusal. Its text is one line that names the thing and the mend; `tv` prints that."""

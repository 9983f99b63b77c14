"""What the store says no with."""

__all__ = ["Refusal"]


class Refusal(Exception):
    """A client asked for what it may not have or what cannot be. `name` is one of `xs_wire.ERRORS`."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

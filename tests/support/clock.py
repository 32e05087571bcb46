"""A clock that stands still unless told to go on: what takes time in a test takes exactly that."""


class Clock:
    """Call it for the time, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

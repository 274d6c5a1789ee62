"""What can stop an engine from starting."""

from __future__ import annotations


class StartupError(RuntimeError):
    """The replica cannot start. The message is one line: what, why, and the mend."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))

"""The one family of errors that infi-edge raises on purpose."""


class InfiEdgeError(Exception):
    """Something a user can act on; the message is one printable line that says what to do.

    What a hostile file puts into a message cannot move the terminal's cursor.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.splitlines())
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class BundleError(InfiEdgeError):
    """A filter bundle that is damaged, hostile, too new, or made for something else."""


class ConfigError(InfiEdgeError):
    """A setting, option or workload text that does not make sense."""


class SourceError(InfiEdgeError):
    """A camera, clip or folder that cannot be opened or read."""


class ExecutorError(InfiEdgeError):
    """The model could not be loaded or run."""

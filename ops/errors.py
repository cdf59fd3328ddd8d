"""Errors that a user can mend; each says what was expected, what was found, and what to do."""


class OpsError(Exception):
    """Something outside the code has to change: an argument, a file, the machine."""


class RemoteError(OpsError):
    """The remote did not do what it was asked: down, slow, full, misconfigured. Try again later."""


class DamagedError(OpsError):
    """What lies on the remote or here is not what its checksum says, or is not well formed."""


class UsageError(OpsError):
    """The command line is wrong, in a way that its parser cannot see."""

"""The environment that rclone gets: what configures remotes and credentials, and nothing else.

rclone takes each of its flags from the environment too. A filter there, or RCLONE_DRY_RUN, would
leave files out without an error; RCLONE_PROGRESS would mix its lines into what is read here.
"""

from collections.abc import Mapping

_PREFIX = "RCLONE_"
# The configuration and its password; the network between here and the remote.
_NAMES = """
CONFIG PASSWORD_COMMAND HTTP_PROXY CA_CERT CLIENT_CERT CLIENT_KEY CLIENT_PASS NO_CHECK_CERTIFICATE
BIND USER_AGENT DISABLE_HTTP2 TPSLIMIT TPSLIMIT_BURST
"""
# What an option of one backend begins with, as in RCLONE_S3_ACCESS_KEY_ID. Without `local`, which
# is the folder here, too.
BACKENDS = """
ALIAS ARCHIVE AZUREBLOB AZUREFILES B2 BOX CACHE CHUNKER CLOUDINARY COMBINE COMPRESS CRYPT DOI DRIME
DRIVE DROPBOX FICHIER FILEFABRIC FILELU FILEN FILESCOM FTP GCS GOFILE GPHOTOS HASHER HDFS HIDRIVE
HTTP HUAWEIDRIVE ICLOUDDRIVE IMAGEKIT INTERNETARCHIVE INTERNXT JOTTACLOUD KOOFR LINKBOX MAILRU MEGA
MEMORY NETSTORAGE ONEDRIVE OOS OPENDRIVE PCLOUD PIKPAK PIXELDRAIN PREMIUMIZEME PROTONDRIVE PUTIO
QINGSTOR QUATRIX S3 SEAFILE SFTP SHADE SHAREFILE SIA SMB STORJ SUGARSYNC SWIFT TARDIGRADE ULOZTO
UNION WEBDAV YANDEX ZOHO
"""


def rclone_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that rclone gets."""
    ignored = set(ignored_variables(environment))
    return {name: value for name, value in environment.items() if name not in ignored}


def ignored_variables(environment: Mapping[str, str]) -> list[str]:
    """Return the names of rclone's variables that it does not get, in order."""
    return sorted(n for n in environment if n.startswith(_PREFIX) and not _configures(n))


def _configures(name: str) -> bool:
    rest = name.removeprefix(_PREFIX)
    backend, _, option = rest.partition("_")
    # RCLONE_CONFIG_PASS, and RCLONE_CONFIG_<REMOTE>_<OPTION>, which defines a remote.
    return rest in _NAMES.split() or (bool(option) and backend in ["CONFIG", *BACKENDS.split()])

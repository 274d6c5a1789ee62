"""What a store can meet, said in one line each: what, why, and how to mend it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class StoreError(RuntimeError):
    """The store cannot do what was asked. One line, fit to be shown as it is."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


_CREDENTIALS = "set AWS_PROFILE, or give this machine an instance role"
_RENEW = "log in again, or fetch new credentials"
_NETWORK = "check the network, the proxy and AWS_ENDPOINT_URL, then try again"
_REGION = "set AWS_REGION to the region of the bucket"
_BUSY = "try again in a minute"
_AGAIN = "remove the artifact and publish it again"
_ROOM = "free space there, or use another directory"

# What an S3 server answers: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
_BY_CODE = {
    "NoSuchBucket": ("there is no such bucket", "mend the url, or create the bucket"),
    "NoSuchKey": ("it is not in the store", _AGAIN),
    "404": ("it is not in the store", "mend the url"),
    "InvalidRange": ("it is shorter than its manifest says", _AGAIN),
    "InvalidBucketName": ("no bucket can have this name", "mend the url"),
    "InvalidAccessKeyId": ("the access key is unknown", _CREDENTIALS),
    "SignatureDoesNotMatch": ("the secret key does not fit the access key", _CREDENTIALS),
    "InvalidToken": ("the session token is not valid", _RENEW),
    "InvalidClientTokenId": ("the session token is not valid", _RENEW),
    "ExpiredToken": ("the credentials have expired", _RENEW),
    "ExpiredTokenException": ("the credentials have expired", _RENEW),
    "RequestExpired": ("the credentials have expired", _RENEW),
    "TokenRefreshRequired": ("the credentials have expired", _RENEW),
    "RequestTimeTooSkewed": ("the clock of this machine is wrong", "set it (chrony, ntp)"),
    "PermanentRedirect": ("the bucket is in another region", _REGION),
    "301": ("the bucket is in another region", _REGION),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", _REGION),
    "IllegalLocationConstraintException": ("the bucket is in another region", _REGION),
    "SlowDown": ("the store is overloaded", _BUSY),
    "503": ("the store is overloaded", _BUSY),
    "ServiceUnavailable": ("the store is overloaded", _BUSY),
    "InternalError": ("the store failed", _BUSY),
    "500": ("the store failed", _BUSY),
    "QuotaExceeded": ("the quota of the bucket is used up", "remove artifacts"),
    "XMinioStorageFull": ("the store is full", "remove artifacts"),
}
# Requests that need the right of another name.
_RIGHT = {
    "HeadObject": "GetObject",
    "ListObjectsV2": "ListBucket",
    "HeadBucket": "ListBucket",
    "CreateMultipartUpload": "PutObject",
    "UploadPart": "PutObject",
    "CompleteMultipartUpload": "PutObject",
}
_DENIED = ("AccessDenied", "AllAccessDisabled", "Forbidden", "403", "InvalidObjectState")

# Exceptions by name: botocore and aiohttp are not imported here, and may not be installed.
_BY_CLASS = {
    "NoCredentialsError": ("there are no credentials", _CREDENTIALS),
    "PartialCredentialsError": ("the credentials are not complete", _CREDENTIALS),
    "ProfileNotFound": ("there is no such AWS profile", "mend AWS_PROFILE"),
    "CredentialRetrievalError": ("the credentials cannot be fetched", _RENEW),
    "TokenRetrievalError": ("the credentials have expired", _RENEW),
    "SSOTokenLoadError": ("the credentials have expired", _RENEW),
    "UnauthorizedSSOTokenError": ("the credentials have expired", _RENEW),
    "NoRegionError": ("no region is set", _REGION),
    "ParamValidationError": ("the name of the bucket or the key is not valid", "mend the url"),
    "SSLError": ("the server's certificate is not trusted", "set AWS_CA_BUNDLE"),
    "ProxyConnectionError": ("the proxy cannot be reached", _NETWORK),
    "EndpointConnectionError": ("the network is down or the server away", _NETWORK),
    "ConnectTimeoutError": ("the server does not answer", _NETWORK),
    "ReadTimeoutError": ("the server stopped answering", _NETWORK),
    "ConnectionClosedError": ("the connection broke", _NETWORK),
    "ResponseStreamingError": ("the connection broke", _NETWORK),
    "IncompleteReadError": ("the connection broke", _NETWORK),
    "HTTPClientError": ("the connection broke", _NETWORK),
    "ClientError": ("the connection broke", _NETWORK),  # aiohttp's; botocore's has a code
    "FSTimeoutError": ("the server does not answer", _NETWORK),
    "TimeoutError": ("the server does not answer", _NETWORK),
    "ConnectionError": ("the connection broke", _NETWORK),
}

_BY_ERRNO = {
    errno.ENOSPC: ("the disk is full", _ROOM),
    errno.EDQUOT: ("the disk quota is used up", _ROOM),
    errno.EFBIG: ("files may not be this large here", "raise `ulimit -f`, or use another disk"),
    errno.EROFS: ("the file system is read-only", "mount it writable, or use another directory"),
    errno.EACCES: ("permission denied", "give this user access, or use another directory"),
    errno.EPERM: ("permission denied", "give this user access, or use another directory"),
    errno.ENOENT: ("it does not exist", "mend the path"),
    errno.ENOTDIR: ("a part of the path is a file", "mend the path"),
    errno.EISDIR: ("it is a directory", "remove it"),
    errno.ENAMETOOLONG: ("the name is too long", "mend the path"),
    errno.ENOSYS: ("the mount has no file locks", "mount it with flock, or use a local disk"),
    errno.EOPNOTSUPP: ("the mount has no file locks", "mount it with flock, or use a local disk"),
    errno.ENOLCK: ("the mount has no file locks", "mount it with flock, or use a local disk"),
    errno.EMFILE: ("too many files are open", "raise `ulimit -n`"),
    errno.EIO: ("the disk or the mount failed", "look at dmesg and the mount"),
    errno.ESTALE: ("the mount is stale", "mount it again"),
    errno.ENOTCONN: ("the mount is gone", "mount it again"),
}


def s3_code(error: BaseException) -> str:
    """The code an S3 server gave ("NoSuchKey"), or "" where the error is not such an answer."""
    for link in _chain(error):
        response: Any = getattr(link, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def explain(error: Exception, doing: str) -> StoreError:
    """`error` as one line. `doing` follows "cannot": "publish to /efs".

    The text of a foreign exception is not shown: it may hold a token or a signed url. Its class,
    its code, its errno and a file's name cannot.
    """
    why, mend = _reason(error)
    name = getattr(error, "filename", None)
    shown = isinstance(name, str) and name not in doing and ".partial" not in name
    file = f"{name}: " if shown else ""
    return StoreError(f"cannot {doing}: {file}{why} -> {mend}")


@contextmanager
def explained(doing: str, kind: type[Exception] = OSError) -> Iterator[None]:
    """Turns what the file system, or with `kind` a library, raises into a StoreError.

    Raises:
        StoreError: for a `kind` that was raised within; its own pass as they are.
    """
    try:
        yield
    except StoreError:
        raise
    except kind as error:
        # From None: the libraries' tracebacks print requests, and with them credentials.
        raise explain(error, doing) from None


def _reason(error: Exception) -> tuple[str, str]:
    code = s3_code(error)
    if code in _BY_CODE:
        return _BY_CODE[code]
    if code in _DENIED:
        names = (str(getattr(link, "operation_name", "")) for link in _chain(error))
        request = next(filter(None, names), "GetObject")
        return "access denied", (
            f"allow s3:{_RIGHT.get(request, request)} there, and s3:ListBucket: without that even "
            "what does not exist is denied"
        )
    if code:
        return f"the server answers {code}", "see the S3 error codes"
    for link in _chain(error):
        for kind in type(link).__mro__:
            if kind.__name__ in _BY_CLASS:
                return _BY_CLASS[kind.__name__]
    if isinstance(error, OSError) and error.errno in _BY_ERRNO:
        return _BY_ERRNO[error.errno]
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno), "look at the disk and the mount"
    return f"unexpected {type(error).__name__}", "try again; report it if it stays"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it, outermost first."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or link.__context__

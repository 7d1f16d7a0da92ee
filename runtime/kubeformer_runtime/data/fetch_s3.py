"""Objects of an S3 bucket, by boto3: credentials, region and endpoint are those of its AWS_* environment variables.

An object is read at the ETag that it had when it was listed (If-Match), with Range where a download goes on. Its MD5
is verified where the ETag is one: objects that were put in one part, without a key of KMS.
"""

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kubeformer.contract.names import Reason
from kubeformer_runtime.data.errors import DataError
from kubeformer_runtime.data.fetch_file import (
    CHUNK_BYTES,
    Body,
    BrokenTransferError,
    ChangedError,
    Remote,
    is_disk_full,
)
from kubeformer_runtime.data.glob_keys import has_magic, matches, prefix_of

_DENIED = frozenset(
    {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "XAdminUserNotFound"}
)
_MISSING = frozenset({"404", "NoSuchKey", "NotFound"})


def s3_files(uri: str, rest: str, root: Path, field: str) -> list[Remote]:
    """The objects of s3://BUCKET/KEY, below `root`; KEY may be a prefix up to a slash, or a glob. Raises DataError."""
    import boto3
    from botocore.config import Config

    bucket, _, key = rest.partition("/")
    with _errors(uri, bucket, field, listing=True):
        options = Config(connect_timeout=10, read_timeout=30, retries={"max_attempts": 4, "mode": "standard"})
        client = boto3.session.Session().client("s3", config=options)  # the environment of now
        listed = _listed(client, bucket, prefix_of(key))
        chosen = [item for item in listed if _wanted(item["Key"], key)]
    if not chosen:
        known = ", ".join(item["Key"] for item in listed[:8]) or "nothing"
        raise DataError(
            Reason.DATA_NOT_FOUND,
            f"{field}: no object matches {uri}; below s3://{bucket}/{prefix_of(key)} there is {known}. Upload it, or "
            f"correct {field}.uri",
        )
    return [
        Remote(
            f"s3://{bucket}/{item['Key']}",
            root / bucket / item["Key"],
            partial(_open, client, bucket, item["Key"], uri, field),
            size=item["Size"],
            version=item["ETag"],
            digest=_digest(client, bucket, item),
        )
        for item in chosen
    ]


def _wanted(found: str, key: str) -> bool:
    if found.endswith("/") or any(step in ("", ".", "..") for step in found.split("/")):
        return False  # no file name
    return matches(key, found) if has_magic(key) else found == key or found.startswith(key.rstrip("/") + "/")


def _listed(client: Any, bucket: str, prefix: str) -> list[dict[str, Any]]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item for page in pages for item in page.get("Contents", ())]


def _digest(client: Any, bucket: str, item: dict[str, Any]) -> str | None:
    tag = item["ETag"].strip('"')
    if not re.fullmatch(r"[0-9a-f]{32}", tag):
        return None
    encryption = client.head_object(Bucket=bucket, Key=item["Key"]).get("ServerSideEncryption")
    return f"md5:{tag}" if encryption in (None, "AES256") else None


@contextmanager
def _open(
    client: Any, bucket: str, key: str, uri: str, field: str, offset: int, version: str | None, fetched: bool
) -> Iterator[Body | None]:
    with _errors(uri, bucket, field):
        wanted = {"Range": f"bytes={offset}-"} if offset else {}
        answer = client.get_object(Bucket=bucket, Key=key, IfMatch=version, **wanted)
        size = offset + answer["ContentLength"]
        with closing(answer["Body"]) as stream:
            yield Body(offset, size, answer["ETag"], stream.iter_chunks(CHUNK_BYTES))


@contextmanager
def _errors(uri: str, bucket: str, field: str, *, listing: bool = False) -> Iterator[None]:
    """boto3's errors in words for the data's owner."""
    from botocore import exceptions

    try:
        yield
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise DataError(
            Reason.DATA_NOT_FOUND,
            f"{field}: there are no credentials for {uri}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in pod.env "
            "from a Secret, and AWS_ENDPOINT_URL for a store that is not Amazon's",
        ) from error
    except exceptions.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if code == "NoSuchBucket":
            message = f"there is no bucket {bucket}; correct {field}.uri or AWS_ENDPOINT_URL"
        elif code in _DENIED:
            message = f"access to {uri} is refused ({code}); check AWS_ACCESS_KEY_ID and the rights of its owner"
        elif code in _MISSING:
            message = f"there is no object at {uri}; upload it, or correct {field}.uri"
        elif code in ("412", "416", "PreconditionFailed", "InvalidRange"):
            raise ChangedError from error
        elif not listing:
            raise BrokenTransferError(str(error)) from error
        else:
            message = f"{uri} cannot be listed: {error}"
        raise DataError(Reason.DATA_NOT_FOUND, f"{field}: {message}") from error
    except (exceptions.BotoCoreError, exceptions.HTTPClientError, OSError) as error:
        if is_disk_full(error):
            raise
        if not listing:
            raise BrokenTransferError(str(error)) from error
        raise DataError(
            Reason.DATA_NOT_FOUND, f"{field}: {uri} cannot be reached: {error}. Check AWS_ENDPOINT_URL and the network"
        ) from error

"""Options of object storage: where videos are uploaded, and how they are served from there."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

ObjectServing = Literal["redirect", "proxy"]


class ObjectOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of object storage. Credentials come from the variables of AWS' tools (`AWS_...`)."""

    object_store: Annotated[
        str,
        Meta(
            description="Bucket to which segments and finished videos are uploaded, and a prefix "
            "for their names, such as s3://bucket/prefix. Needs the extra objects.",
            extra={"metavar": "URL"},
        ),
    ] = ""
    object_store_endpoint: Annotated[
        str,
        Meta(
            description="Server that speaks S3's protocol, such as http://minio:9000.",
            extra={"metavar": "URL", "default": "AWS_ENDPOINT_URL, else Amazon's"},
        ),
    ] = ""
    object_store_serving: Annotated[
        ObjectServing,
        Meta(
            description="Send clients to a signed URL of the object store (redirect), or the "
            "content through this server (proxy).",
        ),
    ] = "redirect"
    object_store_url_lifetime: Annotated[
        int,
        Meta(
            ge=10,
            le=7 * 86400,
            description="Seconds for which a signed URL can be used.",
            extra={"metavar": "SECONDS"},
        ),
    ] = 900
    object_store_drop_local: Annotated[
        bool,
        Meta(
            description="Delete the local segments of a finished video when its objects were read "
            "back and have the right checksums.",
        ),
    ] = False

"""Videos that continue from a snapshot."""

import hashlib

import msgspec

from helios_serve.core.session import Session
from helios_serve.errors import InvalidRequestError
from helios_serve.messages import Snapshot
from helios_serve.model_config import CHUNK_FRAMES


def check_continuation(session: Session) -> None:
    """Raise InvalidRequestError unless the session's request can continue from its snapshot."""
    snapshot = session.snapshot
    if snapshot is None:
        return
    if session.params.num_chunks <= snapshot.chunk:
        raise InvalidRequestError(
            f"got num_frames {session.params.num_frames}, expected more than the "
            f"{snapshot.chunk * CHUNK_FRAMES} that are finished",
            param="num_frames",
        )
    params = session.params
    if (params.width, params.height) != (snapshot.width, snapshot.height):
        raise InvalidRequestError(
            f"got size {params.width}x{params.height}, expected {snapshot.width}x{snapshot.height} "
            "as in the video that is continued",
            param="size",
        )


def fork_snapshot(snapshot: Snapshot, seed: int) -> Snapshot:
    """Return the snapshot for a fork: the same history, with a new generator seeded with `seed`."""
    return msgspec.structs.replace(snapshot, reseed=seed)


def fork_seed(parent_seed: int, chunk: int, request_id: str) -> int:
    """Return the seed (31 bits) of the fork `request_id` at `chunk`, by all three arguments."""
    text = f"{parent_seed}:{chunk}:{request_id}"
    digest = hashlib.blake2b(text.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1

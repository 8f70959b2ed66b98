"""Responses with parts of videos that are in an object store."""

from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from helios_serve.entrypoints.http.ranges import span_of
from helios_serve.store.jobs import StoredJob
from helios_serve.store.objects.object_store import ObjectStore
from helios_serve.store.objects.video_objects import Part, VideoObjects, media_type_of, name_of


async def object_response(
    videos: VideoObjects | None,
    job: StoredJob,
    part: Part,
    request: Request,
    headers: Mapping[str, str] | None = None,
) -> Response | None:
    """Return a redirection to a part of a video, or the finished MP4 from the object store.

    None means that this server sends it from its disk. The redirection is not to be cached,
    because its URL expires.
    """
    if videos is None:
        return None
    url = await videos.signed(job, part, request.method)
    if url is not None:
        return RedirectResponse(url, 307, {**(headers or {}), "cache-control": "no-store"})
    if part == "video" and await videos.is_only_copy(job):
        return await sent_on(
            videos.objects, name_of(job.id, part), media_type_of(part), request, headers or {}
        )
    return None


async def sent_on(
    objects: ObjectStore, name: str, media_type: str, request: Request, headers: Mapping[str, str]
) -> Response | None:
    """Return an object, or a range of it, as it arrives; None if it does not exist."""
    info = await objects.info(name)
    if info is None:
        return None
    known = {**headers, "accept-ranges": "bytes"} | ({"etag": info.e_tag} if info.e_tag else {})
    span = span_of(request.headers, info.size, info.e_tag)
    if span is not None and not span:
        return Response(status_code=416, headers=known | {"content-range": f"bytes */{info.size}"})
    sent = range(info.size) if span is None else span
    known["content-length"] = str(len(sent))
    if span is not None:
        known["content-range"] = f"bytes {span.start}-{span.stop - 1}/{info.size}"
    if request.method == "HEAD":
        sent = range(0)
    status = 200 if span is None else 206
    content = objects.parts(name, sent.start, sent.stop)
    return StreamingResponse(content, status, known, media_type=media_type)

"""The WebSocket route of realtime sessions, and its connections."""

import asyncio
import uuid
from contextlib import suppress

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from helios_serve.entrypoints.http.authentication import check_authority, tenant_of
from helios_serve.entrypoints.http.live.realtime_stream import (
    ClientSocket,
    DisconnectedError,
    SessionStream,
)
from helios_serve.errors import InvalidRequestError
from helios_serve.service.errors import ApiError
from helios_serve.service.protocol import Json
from helios_serve.service.realtime import messages
from helios_serve.service.realtime.sessions import (
    RealtimeSession,
    RealtimeSessions,
    is_session,
    session_of,
)
from helios_serve.service.realtime.start import config_of, session_request
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.service.videos.videos import Videos
from helios_serve.video_request import VideoRequest

MAX_SWITCHING = 64
"""Maximum number of a session's interactions that are waiting for their chunk."""
POLICY_VIOLATION, RESUMED_ELSEWHERE = 1008, 4409


LARGE = 64 << 10
"""A message of at least this many characters is parsed outside of the event loop's thread."""


class RevokedError(Exception):
    """The client's API key was revoked since it connected."""


class RealtimeApi:
    """Realtime sessions over WebSocket. Each session is a stored video of the tenant."""

    def __init__(self, videos: Videos, builder: RequestBuilder, sessions: RealtimeSessions) -> None:
        self.videos = videos
        self.builder = builder
        self.sessions = sessions

    @property
    def routes(self) -> list[WebSocketRoute]:
        return [WebSocketRoute("/v1/realtime/video", self.serve)]

    async def serve(self, socket: WebSocket) -> None:
        """Accept a connection, and handle it until it ends."""
        await socket.accept()
        await RealtimeConnection(socket, self).run()


class RealtimeConnection:
    """One client connection. Handles messages in order, and sends chunks concurrently.

    A connection has at most one session at a time, and any number of them in succession.
    """

    def __init__(self, socket: WebSocket, api: RealtimeApi) -> None:
        self.socket = socket
        self.client = ClientSocket(socket)
        self.videos = api.videos
        self.engine = api.videos.engine
        self.builder = api.builder
        self.sessions = api.sessions
        self.config = api.sessions.config
        self._timeout = asyncio.timeout(self.config.start)
        """Timeout for a client without a session; disabled while it has one."""
        self._had_session = False
        self._stream: SessionStream | None = None
        self._streaming: asyncio.Task[None] | None = None
        self._is_realtime = False
        """Whether the video is a realtime session, not a video that is only read."""
        self._task = asyncio.current_task()
        self._is_evicted = False

    async def run(self) -> None:
        """Handle messages until the client disconnects or the timeout expires."""
        try:
            with suppress(DisconnectedError):
                async with self._timeout:
                    while True:
                        await self._handle_next()
        except TimeoutError:
            await self._close_idle()
        except RevokedError:
            await self.client.close(POLICY_VIOLATION, "the API key was revoked")
        except asyncio.CancelledError:
            if not self._is_evicted:
                raise
            if self._task is not None:
                self._task.uncancel()
        finally:
            await self._detach()
        if self._is_evicted:
            await self.client.close(RESUMED_ELSEWHERE, "the session was resumed elsewhere")

    def evict(self) -> None:
        """Stop reading at once, because another connection reads the session now."""
        self._is_evicted = True
        if self._task is not None:
            self._task.cancel()

    async def report_failure(self, event_id: str, error: Exception) -> None:
        """Report that an accepted interaction failed."""
        with suppress(DisconnectedError):
            await self.client.send_error(
                error,
                code="interaction_failed",
                request_id=self._video_id,
                event_id=event_id,
            )

    async def _handle_next(self) -> None:
        """Handle one message. Errors are sent to the client and do not end the connection.

        Raises DisconnectedError.
        """
        try:
            message = await parse(await self.client.receive())
            if self._stream is None and self._had_session:
                self._start_timeout()
            if not isinstance(message, messages.PingMessage):
                await self._check_authority()
            await self._answer(message)
        except (DisconnectedError, RevokedError):
            raise
        except Exception as error:
            await self.client.send_error(error, request_id=self._video_id)

    async def _check_authority(self) -> None:
        """Refuse the order of a client whose key was revoked. Raises RevokedError."""
        try:
            await check_authority(self.socket)
        except ApiError as error:
            await self.client.send_error(error, request_id=self._video_id)
            raise RevokedError from error

    async def _answer(self, message: messages.ClientMessage | Json) -> None:
        match message:
            case dict():
                await self._start(message)
            case messages.ResumeSession():
                await self._resume(message)
            case messages.InteractMessage(interaction):
                await self._interact(self._active_stream().session, interaction)
            case messages.StopSession():
                await self._stop(self._active_stream())
            case messages.PingMessage():
                await self.client.send(messages.PongMessage())
            case messages.QueueRequest():
                await self.client.send(await self._queue_status())

    async def _start(self, fields: Json) -> None:
        self._check_no_session()
        self._timeout.reschedule(None)
        try:
            asked = await session_request(fields, tenant_of(self.socket), self.builder)
            await self.videos.accept(asked)
        except BaseException:
            self._start_timeout()
            raise
        session = await self.sessions.attach(
            asked.request_id, self, is_endless=asked.params.is_endless
        )
        await self._begin(session, asked, first=0, is_realtime=True, with_header=True)

    async def _resume(self, message: messages.ResumeSession) -> None:
        """Resume a session of the tenant, or read any of its videos."""
        self._check_no_session()
        job = await self.videos.find(message.session_id, tenant_of(self.socket))
        first = message.from_chunk
        if job.is_endless:
            first = max(first, job.shown_chunks.start)  # older ones are not kept
        if not job.first_chunk <= first <= job.next_chunk:
            raise InvalidRequestError(
                f"got from_chunk {message.from_chunk}, expected {job.first_chunk} to "
                f"{job.next_chunk} (the next chunk)",
                param="from_chunk",
            )
        self._timeout.reschedule(None)
        is_realtime = is_session(job)
        session = (
            await self.sessions.attach(job.id, self, is_endless=job.is_endless)
            if is_realtime
            else session_of(job)
        )
        await self._begin(
            session,
            job.request,
            first=first,
            is_realtime=is_realtime,
            with_header=message.header,
        )

    async def _begin(
        self,
        session: RealtimeSession,
        request: VideoRequest,
        *,
        first: int,
        is_realtime: bool,
        with_header: bool,
    ) -> None:
        session.reader = self
        self._had_session, self._is_realtime = True, is_realtime
        self._stream = SessionStream(
            session, self.videos, self.client, self.sessions, with_header=with_header
        )
        video_id = session.video_id
        await self.client.send(
            messages.SessionStarted(video_id, video_id, "m4s", first, config_of(request))
        )
        self._streaming = asyncio.create_task(self._send_chunks(self._stream, first))

    async def _send_chunks(self, stream: SessionStream, first: int) -> None:
        """Send the session's chunks, and `session.done` when another session can be started.

        After a disconnect, the session is detached in `_detach`.
        """
        with suppress(DisconnectedError):
            done = await stream.run(first)
            if self._is_realtime and await stream.is_finished():
                self.sessions.end(stream.session, self)
            elif self._is_realtime:  # stopped by an error, such as a full disk: it may be resumed
                self.sessions.detach(stream.session, self)
            self._stream = None
            self._start_timeout()
            await self.client.send(done)

    async def _interact(self, session: RealtimeSession, interaction: messages.Interaction) -> None:
        event_id = interaction.event_id or uuid.uuid4().hex
        if session.num_switching >= MAX_SWITCHING:
            raise ApiError(
                429,
                f"too many interactions: {session.num_switching} waiting for their chunk "
                f"(limit {MAX_SWITCHING})",
                code="interaction_queue_full",
            )
        is_new = session.accept(event_id, interaction)
        try:
            await self.client.send(messages.InteractionQueued(session.video_id, event_id))
        finally:  # an accepted interaction takes effect even if the client disconnects
            if is_new:
                session.switch(self.engine, event_id, interaction)

    async def _stop(self, stream: SessionStream) -> None:
        if self._is_realtime:
            await stream.stop()
            return
        raise ApiError(
            409,
            f"got session.stop for video {stream.session.video_id}, which is not a realtime "
            "session; to stop reading it, close the connection",
            code="not_a_session",
        )

    async def _queue_status(self) -> messages.QueueStatus:
        stats = (await self.engine.models.stats()).values()
        running = sum(each.scheduler.running for each in stats)
        waiting = sum(each.scheduler.waiting for each in stats)
        if self._video_id is None:
            return messages.QueueStatus(None, None, None, None, None, running, waiting)
        video = await self.videos.describe_id(self._video_id)
        return messages.QueueStatus(
            video.id,
            video.phase,
            video.progress,
            video.queue_position,
            video.eta_seconds,
            running,
            waiting,
        )

    @property
    def _video_id(self) -> str | None:
        return None if self._stream is None else self._stream.session.video_id

    def _check_no_session(self) -> None:
        if self._stream is not None:
            raise ApiError(
                409,
                f"session {self._video_id} is active, expected it to end or be stopped before "
                "the next one",
                code="session_active",
            )

    def _active_stream(self) -> SessionStream:
        if self._stream is None:
            raise ApiError(
                409, "no active session, expected session.start first", code="no_session"
            )
        return self._stream

    def _start_timeout(self) -> None:
        """Start the timeout within which the client must start a session."""
        seconds = self.config.idle if self._had_session else self.config.start
        self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _close_idle(self) -> None:
        expected = "a message" if self._had_session else "session.start"
        error = ApiError(408, f"timed out, expected {expected}", code="timeout")
        with suppress(DisconnectedError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.client.send_error(error)
        await self.client.close(POLICY_VIOLATION, "timeout")

    async def _detach(self) -> None:
        """Detach from the session, which waits for its client to reconnect.

        A stopped session is aborted.
        """
        self._task = None  # eviction is no longer possible
        if self._streaming is not None:
            self._streaming.cancel()
            await asyncio.wait((self._streaming,))
        stream, self._stream = self._stream, None
        if stream is None or not self._is_realtime:
            return
        if stream.is_stopped and not self._is_evicted:
            self.sessions.end(stream.session, self)
            await self.sessions.abort(stream.session.video_id)
        else:
            self.sessions.detach(stream.session, self)


async def parse(text: str) -> messages.ClientMessage | Json:
    """Parse a client's message, a long one in another thread so that no client waits."""
    if len(text) < LARGE:
        return messages.parse_message(text)
    return await asyncio.to_thread(messages.parse_message, text)

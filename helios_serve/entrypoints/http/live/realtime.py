"""The route of realtime sessions, and one connection on it."""

import asyncio
import uuid
from contextlib import suppress

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from helios_serve.entrypoints.http.authentication import tenant_of
from helios_serve.entrypoints.http.live.realtime_socket import ClientSocket, GoneError
from helios_serve.entrypoints.http.live.realtime_stream import SessionStream
from helios_serve.errors import InvalidRequestError
from helios_serve.service.errors import ApiError
from helios_serve.service.protocol import Json
from helios_serve.service.realtime import messages
from helios_serve.service.realtime.sessions import (
    RealtimeSession,
    RealtimeSessions,
    is_session,
)
from helios_serve.service.realtime.start import config_of, session_request
from helios_serve.service.videos.request_builder import RequestBuilder
from helios_serve.service.videos.videos import Videos
from helios_serve.video_request import VideoRequest

MAX_SWITCHING = 64
"""Interactions of a session that wait for their chunk."""
POLICY_VIOLATION, RESUMED_ELSEWHERE = 1008, 4409


class RealtimeApi:
    """Sessions over WebSocket, each a stored video of the sender's."""

    def __init__(self, videos: Videos, builder: RequestBuilder, sessions: RealtimeSessions) -> None:
        self.videos = videos
        self.builder = builder
        self.sessions = sessions

    @property
    def routes(self) -> list[WebSocketRoute]:
        return [WebSocketRoute("/v1/realtime/video", self.serve)]

    async def serve(self, socket: WebSocket) -> None:
        await socket.accept()
        await RealtimeConnection(socket, self).run()


class RealtimeConnection:
    """One client: its messages are answered in their order, while chunks are sent beside.

    It has one session at a time, and any number one after another.
    """

    def __init__(self, socket: WebSocket, api: RealtimeApi) -> None:
        self.socket = socket
        self.client = ClientSocket(socket)
        self.videos = api.videos
        self.engine = api.videos.engine
        self.builder = api.builder
        self.sessions = api.sessions
        self.config = api.sessions.config
        self._patience = asyncio.timeout(self.config.start)
        """With a client that has no session; None while it has one."""
        self._had_session = False
        self._stream: SessionStream | None = None
        self._streaming: asyncio.Task[None] | None = None
        self._is_ours = False
        """Whether the session's video was made for it, and ends with it."""
        self._task = asyncio.current_task()
        self._is_evicted = False

    async def run(self) -> None:
        """Until the client goes, or does not say what it wants."""
        try:
            with suppress(GoneError):
                async with self._patience:
                    while True:
                        await self._handle_next()
        except TimeoutError:
            await self._give_up()
        except asyncio.CancelledError:
            if not self._is_evicted:
                raise
            if self._task is not None:
                self._task.uncancel()
        finally:
            await self._leave()
        if self._is_evicted:
            await self.client.close(RESUMED_ELSEWHERE, "the session was resumed elsewhere")

    def evict(self) -> None:
        """Give the session up at once: another one has it."""
        self._is_evicted = True
        if self._task is not None:
            self._task.cancel()

    async def tell_failure(self, event_id: str, error: Exception) -> None:
        """An interaction that was accepted came to nothing."""
        with suppress(GoneError):
            await self.client.tell_error(
                error,
                code="interaction_failed",
                request_id=self._video_id,
                event_id=event_id,
            )

    async def _handle_next(self) -> None:
        """No fault in a message ends the connection. Raises GoneError."""
        try:
            message = messages.parse_message(await self.client.receive())
            if self._stream is None and self._had_session:
                self._wait_for_client()
            await self._answer(message)
        except GoneError:
            raise
        except Exception as error:
            await self.client.tell_error(error, request_id=self._video_id)

    async def _answer(self, message: messages.ClientMessage | Json) -> None:
        match message:
            case dict():
                await self._start(message)
            case messages.ResumeSession():
                await self._resume(message)
            case messages.InteractMessage(interaction):
                await self._interact(self._current().session, interaction)
            case messages.StopSession():
                await self._stop(self._current())
            case messages.PingMessage():
                await self.client.tell(messages.PongMessage())
            case messages.QueueRequest():
                await self.client.tell(await self._queue_status())

    async def _start(self, fields: Json) -> None:
        self._check_free()
        self._patience.reschedule(None)
        try:
            asked = await session_request(
                fields, tenant_of(self.socket), self.builder, self.config.max_lead_chunks
            )
            await self.videos.accept(asked)
        except BaseException:
            self._wait_for_client()
            raise
        session = await self.sessions.take(asked.request_id, self)
        await self._begin(session, asked, first=0, is_ours=True, with_header=True)

    async def _resume(self, message: messages.ResumeSession) -> None:
        """Go on with a session of the sender's, or read any video of its."""
        self._check_free()
        job = await self.videos.find(message.session_id, tenant_of(self.socket))
        if not job.first_chunk <= message.from_chunk <= job.next_chunk:
            raise InvalidRequestError(
                f"got from_chunk {message.from_chunk}, expected {job.first_chunk} to "
                f"{job.next_chunk}, the next to come",
                param="from_chunk",
            )
        self._patience.reschedule(None)
        is_ours = is_session(job)
        session = await self.sessions.take(job.id, self) if is_ours else RealtimeSession(job.id)
        await self._begin(
            session,
            job.request,
            first=message.from_chunk,
            is_ours=is_ours,
            with_header=message.header,
        )

    async def _begin(
        self,
        session: RealtimeSession,
        request: VideoRequest,
        *,
        first: int,
        is_ours: bool,
        with_header: bool,
    ) -> None:
        session.reader = self
        self._had_session, self._is_ours = True, is_ours
        self._stream = SessionStream(
            session, self.videos, self.client, self.sessions, with_header=with_header
        )
        video_id = session.video_id
        await self.client.tell(
            messages.SessionStarted(video_id, video_id, "m4s", first, config_of(request))
        )
        self._streaming = asyncio.create_task(self._send_chunks(self._stream, first))

    async def _send_chunks(self, stream: SessionStream, first: int) -> None:
        """Where the client has gone, the session is left when its messages end."""
        with suppress(GoneError):
            await stream.run(first)
            if self._is_ours and await stream.is_over():
                self.sessions.end(stream.session, self)
            elif self._is_ours:  # stopped by a full disk, say: it may go on, and be resumed
                self.sessions.leave(stream.session, self)
            self._stream = None
            self._wait_for_client()

    async def _interact(self, session: RealtimeSession, interaction: messages.Interaction) -> None:
        event_id = interaction.event_id or uuid.uuid4().hex
        if session.num_switching >= MAX_SWITCHING:
            raise ApiError(
                429,
                f"got an interaction while {MAX_SWITCHING} others wait for their chunk",
                code="interaction_queue_full",
            )
        is_new = session.accept(event_id, interaction)
        try:
            await self.client.tell(messages.InteractionQueued(session.video_id, event_id))
        finally:  # it was accepted, whether the client still hears of it or not
            if is_new:
                session.switch(self.engine, event_id, interaction)

    async def _stop(self, stream: SessionStream) -> None:
        if self._is_ours:
            await stream.stop()
            return
        raise ApiError(
            409,
            f"got session.stop for video {stream.session.video_id}, which is not a session's: "
            "close the connection to read no more of it",
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

    def _check_free(self) -> None:
        if self._stream is not None:
            raise ApiError(
                409,
                f"got another session while {self._video_id} is under way, expected it to end or "
                "to be stopped first",
                code="session_active",
            )

    def _current(self) -> SessionStream:
        if self._stream is None:
            raise ApiError(
                409, "got a message to a session, expected session.start first", code="no_session"
            )
        return self._stream

    def _wait_for_client(self) -> None:
        """It has no session: it should start one."""
        seconds = self.config.idle if self._had_session else self.config.start
        self._patience.reschedule(asyncio.get_running_loop().time() + seconds)

    async def _give_up(self) -> None:
        expected = "a message" if self._had_session else "session.start"
        error = ApiError(408, f"got nothing in time, expected {expected}", code="timeout")
        with suppress(GoneError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.client.tell_error(error)
        await self.client.close(POLICY_VIOLATION, "timeout")

    async def _leave(self) -> None:
        """The session, if there is one, is kept for its client for a while."""
        self._task = None  # nothing is left to evict
        if self._streaming is not None:
            self._streaming.cancel()
            await asyncio.wait((self._streaming,))
        stream, self._stream = self._stream, None
        if stream is None or not self._is_ours:
            return
        if stream.is_stopped and not self._is_evicted:
            self.sessions.end(stream.session, self)
            await self.sessions.abort(stream.session.video_id)
        else:
            self.sessions.leave(stream.session, self)

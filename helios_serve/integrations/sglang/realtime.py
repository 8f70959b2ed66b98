"""SGLang's realtime WebSocket: a Helios video, chunk by chunk, whose prompt may change."""

from dataclasses import dataclass
from typing import Any

from sglang.multimodal_gen.runtime.entrypoints.openai.realtime.realtime_adapter import (
    BaseRealtimeModelAdapter,
    RealtimeChunkInputs,
    save_realtime_first_frame,
)
from sglang.multimodal_gen.runtime.entrypoints.openai.utils import build_sampling_params

from helios_serve.integrations.sglang.sampling import CHOSEN, LORA, OURS
from helios_serve.model_config import CHUNK_FRAMES
from helios_serve.options.sampling import MAX_FRAMES

LATENT_FRAMES = 9
"""Latent frames per chunk."""


@dataclass
class LivePrompt:
    """The prompt of a session's next chunk, and the id of the event that set it."""

    text: str = ""
    event_id: int | None = None


class HeliosRealtimeAdapter(BaseRealtimeModelAdapter):  # type: ignore[misc]
    """Sends one request for each chunk to the scheduler. Runs in the HTTP process."""

    def create_state(self) -> LivePrompt:
        return LivePrompt()

    async def on_init(self, session: Any, request: Any) -> None:
        await save_realtime_first_frame(session, request)
        session.adapter_state.text = request.prompt

    def ingest_event(self, session: Any, event: Any) -> str:
        """Set the prompt of the next chunk. Raises ValueError for any other event."""
        if event.kind != "prompt":
            raise ValueError(f"got event {event.kind!r}, expected 'prompt'")
        if not isinstance(event.payload, str) or not event.payload.strip():
            raise ValueError("got an empty prompt or one that is not a string, expected text")
        session.adapter_state.text = event.payload
        session.adapter_state.event_id = event.event_id
        return "kind=prompt"

    def get_chunk_size(self, session: Any, server_args: Any, chunk: Any) -> int:  # noqa: ARG002
        """Return the latent frames of a chunk."""
        return LATENT_FRAMES

    def get_realtime_event_id(self, session: Any) -> int | None:
        event_id: int | None = session.adapter_state.event_id
        return event_id

    def sample_chunk_inputs(
        self,
        session: Any,
        server_args: Any,  # noqa: ARG002
        chunk: Any,  # noqa: ARG002
        chunk_size: int,  # noqa: ARG002
    ) -> Any:
        return RealtimeChunkInputs(prompt=session.adapter_state.text)

    def build_sampling_params(
        self,
        session: Any,
        server_args: Any,  # noqa: ARG002
        chunk: Any,
        chunk_inputs: Any,
        chunk_size: int,
    ) -> Any:
        """Return the parameters of the whole video, which are the same for each chunk.

        Only fields that the client has set are passed on, because SGLang's defaults are for other
        models.
        """
        request = session.request
        chunks = request.max_chunks or MAX_FRAMES // CHUNK_FRAMES
        given = request.model_dump(include={"size", *CHOSEN}, exclude_unset=True)
        ours = {name: value for name, value in request.model_extra.items() if name in OURS + LORA}
        return build_sampling_params(
            chunk.request_id,
            prompt=chunk_inputs.prompt,
            width=request.width,
            height=request.height,
            num_frames=min(chunks * CHUNK_FRAMES, MAX_FRAMES),
            fps=request.fps,
            seed=request.seed,
            image_path=request.first_frame,
            video_path=request.video_path,
            save_output=False,
            output_file_name=chunk.request_id,
            realtime_chunk_size=chunk_size,
            **given,
            **ours,
        )

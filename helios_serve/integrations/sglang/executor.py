"""SGLang's pipeline executor, which runs our engine."""

import multiprocessing
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.pipelines_core.executors.pipeline_executor import (
    PipelineExecutor,
)

from helios_serve.integrations.host import EngineHost
from helios_serve.integrations.sglang.videos import LiveVideo, Progress, SglangRequest, SglangVideos


def ignore_progress(done: int, total: int) -> None:
    """Default progress callback."""


class HeliosPipelineExecutor(PipelineExecutor):  # type: ignore[misc]
    """Generates videos with our engine. `make` may be called in several threads at once."""

    def __init__(self, server_args: Any) -> None:
        """Start the engine, and wait until its workers are ready. Raises HeliosError."""
        super().__init__(server_args)
        # SGLang's worker is a daemon process, which may not have child processes.
        multiprocessing.current_process().daemon = False
        model = server_args.model_path
        if Path(model).is_dir():  # Ray actors have other working directories
            model = str(Path(model).resolve())
        self.host = EngineHost(model, server_args.pipeline_config.settings())
        self.host.wait_ready()
        self._underway: dict[str, SglangVideos] = {}

    def execute(self, stages: Any, batch: Any, server_args: Any) -> Any:
        return self.execute_group(stages, [batch], server_args)[0]

    def execute_group(self, stages: Any, batches: list[Any], server_args: Any) -> list[Any]:  # noqa: ARG002
        """Generate the videos that have no output yet.

        Warm-ups are skipped: there is nothing to warm up.
        """
        new = [batch for batch in batches if batch.output is None and not batch.is_warmup]
        self.make([(batch, self.open(batch)) for batch in new])
        return batches

    def open(self, batch: Any) -> SglangVideos:
        """Return the object that will hold the videos of a request or of its realtime session.

        From now on, they can be cancelled by the id of the request or session.
        """
        session = batch.realtime_session_id
        if session and batch.block_idx > 0:
            return self._underway.get(session) or LiveVideo(self.host)
        videos = LiveVideo(self.host) if session else SglangRequest(self.host)
        if name := session or batch.request_id:  # requests of SGLang's Python API have no id
            self.cancel(name)
            self._underway[name] = videos
        return videos

    def make(
        self, opened: list[tuple[Any, SglangVideos]], progress: Progress = ignore_progress
    ) -> None:
        """Generate the videos of the requests concurrently, and store their pixels in `output`.

        Raises HeliosError, or ValueError for an invalid request.
        """
        try:
            for batch, videos in opened:
                videos.begin(batch)
            for batch, videos in opened:
                batch.output = videos.finish(batch, progress)
        finally:
            for batch, videos in opened:
                if not batch.realtime_session_id:
                    self._forget(batch.request_id, videos)

    def cancel(self, name: str) -> None:
        """Cancel a request or a realtime session, and free its resources."""
        videos = self._underway.pop(name, None)
        if videos is not None:
            videos.cancel()

    def _forget(self, name: str | None, videos: SglangVideos) -> None:
        """Abort and forget the videos of a request, which are all finished or no longer needed."""
        videos.cancel()
        if name is not None and self._underway.get(name) is videos:
            self._underway.pop(name, None)

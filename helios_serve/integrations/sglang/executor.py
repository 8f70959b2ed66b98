"""SGLang's executor of a pipeline: our engine."""

import multiprocessing
from pathlib import Path
from typing import Any

from sglang.multimodal_gen.runtime.pipelines_core.executors.pipeline_executor import (
    PipelineExecutor,
)

from helios_serve.integrations.host import EngineHost
from helios_serve.integrations.sglang.videos import LiveVideo, Progress, SglangRequest, SglangVideos


def ignore(done: int, total: int) -> None:
    """Nobody wants to know how far it is."""


class HeliosPipelineExecutor(PipelineExecutor):  # type: ignore[misc]
    """Has videos made in our engine; `make` may be called in any thread, and many times at once."""

    def __init__(self, server_args: Any) -> None:
        """Returns when the workers are ready; raises HeliosError."""
        super().__init__(server_args)
        # SGLang's worker is a daemon, and those may not have processes of their own.
        multiprocessing.current_process().daemon = False
        model = server_args.model_path
        if Path(model).is_dir():  # Ray's actors have working directories of their own
            model = str(Path(model).resolve())
        self.host = EngineHost(model, server_args.pipeline_config.settings())
        self.host.wait_ready()
        self._underway: dict[str, SglangVideos] = {}

    def execute(self, stages: Any, batch: Any, server_args: Any) -> Any:
        return self.execute_group(stages, [batch], server_args)[0]

    def execute_group(self, stages: Any, batches: list[Any], server_args: Any) -> list[Any]:  # noqa: ARG002
        """What was not made before is made now; there is nothing that would need a warm-up."""
        new = [batch for batch in batches if batch.output is None and not batch.is_warmup]
        self.make([(batch, self.open(batch)) for batch in new])
        return batches

    def open(self, batch: Any) -> SglangVideos:
        """What the request's videos will be among, or that of its session.

        From now on they can be cancelled by the id of the request or session.
        """
        session = batch.realtime_session_id
        if session and batch.block_idx > 0:
            return self._underway.get(session) or LiveVideo(self.host)
        videos = LiveVideo(self.host) if session else SglangRequest(self.host)
        if name := session or batch.request_id:  # requests of its Python API have none
            self.cancel(name)
            self._underway[name] = videos
        return videos

    def make(self, opened: list[tuple[Any, SglangVideos]], progress: Progress = ignore) -> None:
        """Make what the requests are for, all of them together; `output` has the pixels then.

        Raises HeliosError, or ValueError for a request that is none.
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
        """End a request or a realtime session, and free what it holds."""
        videos = self._underway.pop(name, None)
        if videos is not None:
            videos.cancel()

    def _forget(self, name: str | None, videos: SglangVideos) -> None:
        """They are over, or one of them is and the others are of no use."""
        videos.cancel()
        if name is not None and self._underway.get(name) is videos:
            self._underway.pop(name, None)

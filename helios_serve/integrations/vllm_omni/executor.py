"""vLLM-Omni's executor, with our engine behind it."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError
from vllm_omni.diffusion.data import DiffusionOutput
from vllm_omni.diffusion.executor.abstract import DiffusionExecutor
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.diffusion.sched.interface import DiffusionSchedulerOutput
from vllm_omni.diffusion.worker.utils import BatchRunnerOutput, RunnerOutput

from helios_serve.engine.requests.chunk_stream import VideoChunk
from helios_serve.errors import HeliosError
from helios_serve.integrations.host import EngineHost
from helios_serve.integrations.settings import EngineSettings
from helios_serve.integrations.vllm_omni import show_our_logs
from helios_serve.integrations.vllm_omni.requests import wants_whole
from helios_serve.integrations.vllm_omni.session import OmniSession, as_theirs
from helios_serve.logger import logger

STEP_TIME = 0.05
"""Seconds that a step of vLLM-Omni's own scheduler waits for a chunk, before it looks around."""
OPTIONS = "additional_config.helios"


class HeliosExecutor(DiffusionExecutor):  # type: ignore[misc]
    """Hands requests to our engine.

    With HeliosEngine it gets every request as it comes, and batches all of them. With vLLM-Omni's
    own engine it gets what that one's scheduler lets through, which is requests that are alike.
    """

    def _init_executor(self) -> None:
        self.sessions: dict[str, OmniSession] = {}
        self._chunks: dict[str, Future[VideoChunk | None]] = {}
        self._on_failure: list[Callable[[], None]] = []
        show_our_logs()
        self.host = EngineHost(self.od_config.model, settings(self.od_config))
        try:
            self.host.wait_ready()
        except BaseException:
            self.host.close()
            raise
        where = ", ".join(f"{name} on {place}" for name, place in self.host.where().items())
        logger.info("Helios is served by helios-serve (%s)", where)
        if self.od_config.engine_backend == "default":
            logger.warning(
                "only requests of equal size and length are batched, and hold a place to their "
                "end: give --deploy-config $(helios-serve vllm-omni-config) for all others"
            )

    @property
    def is_dead(self) -> bool:
        return self.host.failure is not None

    def open(self, request: OmniDiffusionRequest) -> OmniSession:
        """A session that is known here, for interactions and aborts, but not handed on yet."""
        whole = wants_whole(request, is_streaming=self.od_config.streaming_output)
        session = self.sessions[request.request_id] = OmniSession(request, whole=whole)
        return session

    def close(self, session: OmniSession) -> None:
        """Forget a session; ends it if it is not over."""
        if self.sessions.pop(session.request.request_id, None) is not None:
            self._chunks.pop(session.request.request_id, None)
            session.abort()
        if self.is_dead:
            for tell in self._on_failure:
                tell()

    def abort(self, request_id: str) -> None:
        """What is over or unknown is left as it is."""
        if (session := self.sessions.get(request_id)) is not None:
            session.abort()

    def execute_request(self, scheduler_output: DiffusionSchedulerOutput) -> BatchRunnerOutput:
        return self.execute_batch(scheduler_output)

    def execute_batch(self, scheduler_output: DiffusionSchedulerOutput) -> BatchRunnerOutput:
        """All of the requests, to their ends."""
        names = scheduler_output.scheduled_request_ids
        outputs = self._begin(scheduler_output)
        while missing := [name for name in names if name not in outputs]:
            made = self._advance(missing)
            outputs |= {name: output for name, output in made.items() if output.finished}
        return as_runner_output(names, outputs)

    def execute_step(self, scheduler_output: DiffusionSchedulerOutput) -> BatchRunnerOutput:
        """What there is within a moment: the next chunk of some requests, nothing of others."""
        names = scheduler_output.scheduled_request_ids
        for name in self.sessions.keys() - set(names):
            self.close(self.sessions[name])
        outputs = self._begin(scheduler_output) | self._advance(names)
        return as_runner_output(names, outputs)

    def collective_rpc(
        self,
        method: str,
        timeout: float | None = None,  # noqa: ARG002
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        unique_reply_rank: int | None = None,
        exec_all_ranks: bool = False,  # noqa: ARG002
    ) -> Any:
        """The one call that has a meaning here, answered as by one worker."""
        if method != "submit_interaction":
            raise NotImplementedError(
                f"got {method!r}, expected submit_interaction: helios-serve runs the workers, "
                "and takes LoRA adapters with each request"
            )
        self._interact(*args, **(kwargs or {}))
        return [None] if unique_reply_rank is None else None

    def check_health(self) -> None:
        if self.is_dead:
            logger.error("helios-serve: %s", self.host.failure)
            raise EngineDeadError()

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        self._on_failure.append(callback)

    def shutdown(self) -> None:
        self.host.close()

    def _interact(self, request_id: str, interaction: Mapping[str, Any]) -> None:
        """Raises ValueError, on which vLLM-Omni ends the video, as with its own Helios."""
        session = self.sessions.get(request_id)
        if session is None:
            raise ValueError(f"got an event for {request_id!r}, expected a video in the making")
        event = interaction["event"]
        if event.get("multi_modal_data"):
            raise ValueError("got multi_modal_data in an event, expected a prompt alone")
        session.switch_prompt(
            interaction["event_id"], event["prompt"], interaction.get("transition_chunks")
        )

    def _begin(self, scheduler_output: DiffusionSchedulerOutput) -> dict[str, DiffusionOutput]:
        """Open what is new; outputs of what is over with that."""
        begun = {
            new.request_id: self._start(new.req) for new in scheduler_output.scheduled_new_reqs
        }
        return {name: output for name, output in begun.items() if output is not None}

    def _advance(self, names: Iterable[str]) -> dict[str, DiffusionOutput]:
        """What comes of some of the requests within a moment."""
        waiting = {name: self._chunks[name] for name in names if name in self._chunks}
        wait(waiting.values(), STEP_TIME, FIRST_COMPLETED)
        made = {name: self._take(name) for name, chunk in waiting.items() if chunk.done()}
        return {name: output for name, output in made.items() if output is not None}

    def _start(self, request: OmniDiffusionRequest) -> DiffusionOutput | None:
        """An output where nothing is to be made: a refusal, or vLLM-Omni's own warm-up."""
        if request.is_dummy_run():
            return DiffusionOutput()
        session = self.open(request)
        try:
            session.open(self.host)
        except Exception as error:
            self.close(session)
            return DiffusionOutput.from_exception(error)
        self._chunks[request.request_id] = session.next_chunk()
        return None

    def _take(self, name: str) -> DiffusionOutput | None:
        """What has come of a request, which is asked for its next chunk unless it is over."""
        session = self.sessions[name]
        try:
            chunk = self._chunks.pop(name).result()
            assert chunk is not None, "the one before was not the last"
        except HeliosError as error:
            self.close(session)
            return DiffusionOutput.from_exception(as_theirs(error))
        output = session.output(chunk)
        if output is not None and output.finished:
            self.close(session)
        else:
            self._chunks[name] = session.next_chunk()
        return output


def as_runner_output(
    names: Iterable[str], outputs: Mapping[str, DiffusionOutput]
) -> BatchRunnerOutput:
    """Steps are not vLLM-Omni's to count here; it wants a number."""
    return BatchRunnerOutput.from_list(
        [
            RunnerOutput(
                name,
                step_index=0,
                finished=name in outputs and outputs[name].finished,
                result=outputs.get(name),
            )
            for name in names
        ]
    )


def settings(config: Any) -> EngineSettings:
    """Of vLLM-Omni's configuration of the stage; raises InvalidRequestError."""
    options = {"max_num_seqs": config.max_num_seqs}
    return EngineSettings.read(options | config.additional_config.get("helios", {}), OPTIONS)

"""vLLM-Omni's executor, which runs our engine."""

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
from helios_serve.integrations.vllm_omni.requests import wants_single_output
from helios_serve.integrations.vllm_omni.session import OmniSession, as_omni_error
from helios_serve.logger import logger

STEP_TIME = 0.05
"""Seconds for which a step of vLLM-Omni's own scheduler waits for a chunk."""
OPTIONS = "additional_config.helios"


class HeliosExecutor(DiffusionExecutor):  # type: ignore[misc]
    """Passes requests to our engine.

    With HeliosEngine, it receives each request as it arrives, and our engine batches all of them.
    With vLLM-Omni's own engine, it receives only those that its scheduler admits, which have equal
    sizes and lengths.
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
        self.host.on_failure(self._report_failure)
        locations = self.host.worker_locations().items()
        workers = ", ".join(f"{name} on {location}" for name, location in locations)
        logger.info("Helios is served by helios-serve (%s)", workers)
        if self.od_config.engine_backend == "default":
            logger.warning(
                "only requests of equal size and length are batched, and each holds its slot until "
                "it is finished; to batch all requests, use --deploy-config "
                "$(helios-serve vllm-omni-config)"
            )

    @property
    def is_dead(self) -> bool:
        """Whether the engine can no longer generate videos."""
        return self.host.failure is not None

    def open(self, request: OmniDiffusionRequest) -> OmniSession:
        """Return a new session, which can already receive interactions and be aborted.

        It is not submitted to our engine yet.
        """
        whole = wants_single_output(request, is_streaming=self.od_config.streaming_output)
        session = self.sessions[request.request_id] = OmniSession(request, whole=whole)
        return session

    def close(self, session: OmniSession) -> None:
        """Forget a session, and abort it if it is not finished."""
        if self.sessions.pop(session.request.request_id, None) is not None:
            self._chunks.pop(session.request.request_id, None)
            session.abort()
        if self.is_dead:
            self._report_failure(self.host.failure)

    def abort(self, request_id: str) -> None:
        """Abort a request. Finished and unknown requests are ignored."""
        if (session := self.sessions.get(request_id)) is not None:
            session.abort()

    def execute_request(self, scheduler_output: DiffusionSchedulerOutput) -> BatchRunnerOutput:
        return self.execute_batch(scheduler_output)

    def execute_batch(self, scheduler_output: DiffusionSchedulerOutput) -> BatchRunnerOutput:
        """Run all requests to their end."""
        names = scheduler_output.scheduled_request_ids
        outputs = self._begin(scheduler_output)
        while missing := [name for name in names if name not in outputs]:
            made = self._advance(missing)
            outputs |= {name: output for name, output in made.items() if output.finished}
        return as_runner_output(names, outputs)

    def execute_step(self, scheduler_output: DiffusionSchedulerOutput) -> BatchRunnerOutput:
        """Return what is available within STEP_TIME: the next chunk of some requests."""
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
        """Run `submit_interaction`, the only supported method, and reply as one worker would."""
        if method != "submit_interaction":
            raise NotImplementedError(
                f"got method {method!r}, expected submit_interaction: helios-serve manages the "
                "workers, and LoRA adapters are set per request"
            )
        self._interact(*args, **(kwargs or {}))
        return [None] if unique_reply_rank is None else None

    def check_health(self) -> None:
        """Raise EngineDeadError if the engine is dead."""
        if self.is_dead:
            logger.error("helios-serve: %s", self.host.failure)
            raise EngineDeadError()

    def register_failure_callback(self, callback: Callable[[], None]) -> None:
        self._on_failure.append(callback)

    def shutdown(self) -> None:
        self.host.close()

    def _report_failure(self, reason: str | None) -> None:
        """Tell vLLM-Omni, whose health check fails from now on."""
        logger.error("helios-serve: %s", reason)
        for callback in self._on_failure:
            callback()

    def _interact(self, request_id: str, interaction: Mapping[str, Any]) -> None:
        """Change the prompt of a session.

        Raises ValueError, upon which vLLM-Omni aborts the video, as with its own Helios pipeline.
        """
        session = self.sessions.get(request_id)
        if session is None:
            raise ValueError(f"got an event for {request_id!r}, expected a running video")
        event = interaction["event"]
        if event.get("multi_modal_data"):
            raise ValueError("got multi_modal_data in an event, expected only a prompt")
        session.switch_prompt(
            interaction["event_id"], event["prompt"], interaction.get("transition_chunks")
        )

    def _begin(self, scheduler_output: DiffusionSchedulerOutput) -> dict[str, DiffusionOutput]:
        """Start the new requests. Return the outputs of those that end at once."""
        begun = {
            new.request_id: self._start(new.req) for new in scheduler_output.scheduled_new_reqs
        }
        return {name: output for name, output in begun.items() if output is not None}

    def _advance(self, names: Iterable[str]) -> dict[str, DiffusionOutput]:
        """Return the outputs of the given requests that arrive within STEP_TIME."""
        waiting = {name: self._chunks[name] for name in names if name in self._chunks}
        wait(waiting.values(), STEP_TIME, FIRST_COMPLETED)
        made = {name: self._take(name) for name, chunk in waiting.items() if chunk.done()}
        return {name: output for name, output in made.items() if output is not None}

    def _start(self, request: OmniDiffusionRequest) -> DiffusionOutput | None:
        """Start a request. Return an output if it is rejected, or is vLLM-Omni's warm-up."""
        if request.is_dummy_run():
            return DiffusionOutput()
        session = self.open(request)
        try:
            session.open(self.host)
            self._chunks[request.request_id] = session.next_chunk()
        except Exception as error:
            self.close(session)
            return DiffusionOutput.from_exception(error)
        return None

    def _take(self, name: str) -> DiffusionOutput | None:
        """Return the output of a request's finished chunk, and request the next one.

        Whatever fails ends this request only: the step goes on for the others.
        """
        session = self.sessions[name]
        try:
            chunk = self._chunks.pop(name).result()
            assert chunk is not None, "the previous chunk was not the last one"
            output = session.output(chunk)
            if output is None or not output.finished:
                self._chunks[name] = session.next_chunk()
                return output
        except Exception as error:
            if not isinstance(error, HeliosError):
                logger.exception("request %s failed", name)
            output = DiffusionOutput.from_exception(as_omni_error(error))
        self.close(session)
        return output


def as_runner_output(
    names: Iterable[str], outputs: Mapping[str, DiffusionOutput]
) -> BatchRunnerOutput:
    """Convert outputs to vLLM-Omni's type.

    `step_index` is 0, because vLLM-Omni does not count our steps.
    """
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
    """Return the engine settings from vLLM-Omni's stage configuration.

    Raises InvalidRequestError.
    """
    options = {"max_num_seqs": config.max_num_seqs}
    return EngineSettings.read(options | config.additional_config.get("helios", {}), OPTIONS)

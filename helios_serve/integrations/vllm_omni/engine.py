"""vLLM-Omni engine that bypasses vLLM-Omni's scheduler.

Requests of any size and length are passed to our engine, which batches them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

from vllm_omni.diffusion.data import DiffusionOutput, DiffusionRequestAbortedError
from vllm_omni.diffusion.diffusion_engine import DiffusionEngine, DiffusionExecutionMode
from vllm_omni.diffusion.request import OmniDiffusionRequest
from vllm_omni.outputs import OmniRequestOutput

from helios_serve.errors import HeliosError
from helios_serve.integrations.vllm_omni.executor import HeliosExecutor
from helios_serve.integrations.vllm_omni.session import OmniSession, as_omni_error


class HeliosEngine(DiffusionEngine):  # type: ignore[misc]
    """Streams each request from our engine, which batches all requests step by step.

    vLLM-Omni's scheduler and loop are not started. Its post-processing and output formats are used
    unchanged.
    """

    executor: HeliosExecutor

    def _resolve_execution_mode(self, od_config: Any) -> DiffusionExecutionMode:  # noqa: ARG002
        """Return the step-wise mode, whatever is configured."""
        self.step_execution, self.supports_request_batch = True, False
        return DiffusionExecutionMode.STEP_BATCH

    def _init_executor(self, od_config: Any) -> None:
        super()._init_executor(od_config)
        chosen: Any = self.executor
        if not isinstance(chosen, HeliosExecutor):
            found = type(chosen).__name__
            chosen.shutdown()
            raise ValueError(
                f"got {found} with HeliosEngine, expected --distributed-executor-backend "
                "helios_serve.integrations.vllm_omni.HeliosExecutor"
            )

    def run_startup_warmup(self) -> None:
        """Do nothing: our workers report when they are ready."""

    async def step_streaming(
        self, request: OmniDiffusionRequest
    ) -> AsyncIterator[list[OmniRequestOutput]]:
        """Yield the request's outputs as they arrive. The video is aborted if the reader stops."""
        session = self.executor.open(request)
        started = time.perf_counter()
        try:
            await asyncio.to_thread(session.open, self.executor.host)
            opened = time.perf_counter()
            if request.sampling_params.emit_request_lifecycle:
                yield self.postprocess_output(
                    request, DiffusionOutput(finished=False, request_started=True)
                )
            while (chunk := await self._next_chunk(session)) is not None:
                output = await asyncio.to_thread(session.output, chunk)
                if output is None:
                    continue
                results = self.postprocess_output(request, output)
                for result in results:
                    result.metrics["preprocess_time_ms"] = 1000 * (opened - started)
                    result.metrics["diffusion_engine_exec_time_ms"] = 1000 * (
                        time.perf_counter() - opened
                    )
                yield results
        finally:
            self.executor.close(session)

    def collective_rpc(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.executor.collective_rpc(method, *args, **kwargs)

    async def async_collective_rpc(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(self.executor.collective_rpc, method, *args, **kwargs)

    def abort(self, request_id: str | Iterable[str]) -> None:
        for name in (request_id,) if isinstance(request_id, str) else tuple(request_id):
            self.executor.abort(name)

    async def _next_chunk(self, session: OmniSession) -> Any:
        try:
            return await asyncio.wrap_future(session.next_chunk())
        except HeliosError as error:
            if session.is_aborted:
                name = session.request.request_id
                raise DiffusionRequestAbortedError(f"Request {name} aborted.") from error
            raise as_omni_error(error) from error

"""Aborts a running video when it is deleted by DELETE /v1/videos/{id}."""

from collections.abc import Awaitable, Callable
from typing import Any

from sglang.multimodal_gen.runtime.entrypoints.control_requests import ReleaseRealtimeSessionReq

from helios_serve.integrations.sglang.pipeline import HeliosPipelineConfig

STORE = "sglang.multimodal_gen.runtime.entrypoints.openai.stores.AsyncDictStore.pop"


async def forget_video(original: Callable[[Any, str], Awaitable[Any]], store: Any, key: str) -> Any:
    """Wrap the removal of a video's entry from SGLang's store. Runs in the HTTP process."""
    from sglang.multimodal_gen.runtime.entrypoints.openai import video_api
    from sglang.multimodal_gen.runtime.scheduler_client import async_scheduler_client
    from sglang.multimodal_gen.runtime.server_args import get_global_server_args

    entry = await original(store, key)
    task = video_api._VIDEO_JOB_TASKS.get(key)
    config = get_global_server_args().pipeline_config
    if store is video_api.VIDEO_STORE and task and isinstance(config, HeliosPipelineConfig):
        task.cancel()
        await async_scheduler_client.forward(ReleaseRealtimeSessionReq(session_id=key))
    return entry

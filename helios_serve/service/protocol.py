"""What the API takes and gives."""

from datetime import date
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from helios_serve.options.sampling import NumFrames, SamplingOptions, Seed, StepCount
from helios_serve.store.batches import BatchStatus, LineError
from helios_serve.video_request import Relation

BatchKey = Annotated[str, Meta(max_length=64)]
BatchValue = Annotated[str, Meta(max_length=512)]
RequestedTier = Literal["auto", "priority", "default", "flex"]
WireStatus = Literal["queued", "in_progress", "completed", "failed"]


class ErrorDetail(msgspec.Struct, frozen=True):
    """`code` is for programs, `message` for people, `param` the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorDetail


class VideoError(msgspec.Struct, frozen=True):
    """Why a video is not complete."""

    code: str
    message: str


class CreateVideo(SamplingOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A video to make; an option that is left out has the model's default."""

    prompt: Annotated[str, Meta(description="What the video shows.")]
    model: Annotated[
        str | None, Meta(description="A name from the list of models; the first one by default.")
    ] = None
    size: Annotated[
        str | None, Meta(description="WIDTHxHEIGHT in pixels; or `width` and `height`.")
    ] = None
    size_policy: Annotated[
        Literal["exact", "fit"],
        Meta(
            description="exact: refuse a size that the model cannot make; fit: make the nearest "
            "one and scale and cut it."
        ),
    ] = "exact"
    width: Annotated[int | None, Meta(description="Width in pixels.")] = None
    height: Annotated[int | None, Meta(description="Height in pixels.")] = None
    seconds: Annotated[float | None, Meta(description="Length in seconds; or `num_frames`.")] = None
    num_frames: Annotated[
        NumFrames | None, Meta(description="Length in frames.", extra={"default": "99"})
    ] = None
    seed: Annotated[Seed | None, Meta(extra={"default": "random"})] = None
    pyramid_num_inference_steps_list: Annotated[
        tuple[StepCount, ...] | None, Meta(description="Another name of `steps`, as in diffusers.")
    ] = None
    lora: Annotated[
        str | None, Meta(description="A LoRA adapter that the server offers, by name.")
    ] = None
    lora_scale: Annotated[float, Meta(description="Strength of the LoRA adapter.")] = 1.0
    service_tier: Annotated[
        RequestedTier,
        Meta(
            description="priority is real-time, flex takes what the other tiers leave; auto is "
            "default, or the first tier that the tenant may use."
        ),
    ] = "auto"
    user: Annotated[
        str | None, Meta(description="The sender's own name for an end user; it changes nothing.")
    ] = None


class RemixVideo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same seed, size and reference with another prompt."""

    prompt: str


class ExtendVideo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`seconds` more of a finished video, under `prompt`; its first prompt if that is left out."""

    video: dict[str, str]
    seconds: float = 4.0
    prompt: str | None = None


class SwitchPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Another prompt for a video in the making."""

    prompt: str
    transition_chunks: int | None = None


class Video(msgspec.Struct, kw_only=True):
    """A video and how far it is; times are Unix seconds, `progress` goes from 0 to 100.

    Everything from `num_frames` on goes beyond OpenAI's. `relation` says how the video comes from
    its parent; a continuation holds what is new only, since the state at the end of what it goes on
    from is not known.
    """

    id: str
    object: Literal["video"] = "video"
    model: str
    status: WireStatus
    progress: int
    created_at: int
    completed_at: int | None
    expires_at: int | None
    error: VideoError | None
    prompt: str
    remixed_from_video_id: str | None
    seconds: str
    size: str
    num_frames: int
    fps: int
    seed: int
    phase: str
    chunks_done: int
    num_chunks: int
    parent_video_id: str | None
    relation: Relation | None
    queue_position: int | None
    eta_seconds: float | None


class VideoList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class FileObject(msgspec.Struct, kw_only=True):
    """A file of the sender's; `bytes` is its size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class CreateBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A video for every line of a file."""

    input_file_id: str
    endpoint: Literal["/v1/videos"]
    completion_window: Literal["24h"]
    metadata: dict[BatchKey, BatchValue] | None = None


class BatchCounts(msgspec.Struct):
    total: int
    completed: int
    failed: int


class BatchErrors(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[LineError, ...]


class Batch(msgspec.Struct, kw_only=True):
    """A batch and how far it is; times are Unix seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus
    errors: BatchErrors | None
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expires_at: int
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None


class BatchList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchLineResponse(msgspec.Struct, frozen=True):
    """What the API answered, or would have answered, to a line's request."""

    status_code: int
    request_id: str
    body: Video | ErrorBody


class BatchLineError(msgspec.Struct, frozen=True):
    code: str
    message: str


class BatchOutputLine(msgspec.Struct, frozen=True):
    """What came of one line; `error` says why there is no complete video."""

    id: str
    custom_id: str
    response: BatchLineResponse
    error: BatchLineError | None


class PromptSwitchedAt(msgspec.Struct, frozen=True):
    """The chunk from which on the video turns to the prompt, and its first frame."""

    prompt: str
    chunk: int
    frame: int


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "helios-serve"


class ModelList(msgspec.Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]


class UsageCounts(msgspec.Struct, kw_only=True):
    """Videos that were accepted, frames that were made, and the time that workers took for them."""

    requests: int = 0
    frames: int = 0
    device_seconds: float = 0.0


class UsageDay(msgspec.Struct, kw_only=True):
    """What `UsageCounts` counts, on one day of UTC."""

    day: date = msgspec.field(name="date")
    requests: int
    frames: int
    device_seconds: float


class FramesQuota(msgspec.Struct, kw_only=True):
    """Frames that may be asked for in a day, and that are left of today's; None is no limit."""

    frames_per_day: int | None
    frames_left: int | None
    resets_in_seconds: int


class Usage(msgspec.Struct, kw_only=True):
    object: Literal["usage"] = "usage"
    tenant: str
    start_date: date
    end_date: date
    days: list[UsageDay]
    totals: UsageCounts
    quota: FramesQuota


Json = dict[str, Any]

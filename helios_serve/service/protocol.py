"""JSON types of the API: request bodies and responses."""

from datetime import date
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from helios_serve.options.sampling import NumFrames, SamplingOptions, Seed, StepCount
from helios_serve.store.batches import BatchStatus, LineError
from helios_serve.video_request import Relation

MAX_FORKS = 16
"""Maximum number of videos that one request may fork."""
Prompt = Annotated[str, Meta(pattern=r"\S", extra={"allowed": "text that is not blank"})]
BatchKey = Annotated[str, Meta(max_length=64)]
BatchValue = Annotated[str, Meta(max_length=512)]
RequestedTier = Literal["auto", "priority", "default", "flex"]
WireStatus = Literal["queued", "in_progress", "completed", "failed"]


class ErrorDetail(msgspec.Struct, frozen=True):
    """An error: a machine-readable `code`, a `message` for people, and `param`, the
    invalid field.
    """

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every error response."""

    error: ErrorDetail


class VideoError(msgspec.Struct, frozen=True):
    """Why a video failed or was cancelled."""

    code: str
    message: str


class LoraChoice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A LoRA adapter that the server offers. The fields have vLLM-Omni's names.

    `int_id` and `lora_int_id` are accepted and ignored. There is no path: `--lora-modules` offers
    adapters by name.
    """

    name: str | None = None
    lora_name: str | None = None
    adapter: str | None = None
    scale: float | None = None
    lora_scale: float | None = None
    int_id: int | None = None
    lora_int_id: int | None = None


class CreateVideo(SamplingOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a new video. Options that are left out use the model's defaults."""

    prompt: Annotated[Prompt, Meta(description="Text prompt that describes the video.")]
    model: Annotated[
        str | None, Meta(description="Name of a served model; the first model by default.")
    ] = None
    size: Annotated[
        str | None, Meta(description="WIDTHxHEIGHT in pixels, instead of `width` and `height`.")
    ] = None
    size_policy: Annotated[
        Literal["exact", "fit"],
        Meta(
            description="exact: reject a size that the model does not support; fit: generate at "
            "the nearest supported size, then scale and crop to the requested one."
        ),
    ] = "exact"
    width: Annotated[int | None, Meta(description="Width in pixels.")] = None
    height: Annotated[int | None, Meta(description="Height in pixels.")] = None
    seconds: Annotated[
        float | None, Meta(description="Length in seconds, instead of `num_frames`.")
    ] = None
    num_frames: Annotated[
        NumFrames | None, Meta(description="Length in frames.", extra={"default": "99"})
    ] = None
    endless: Annotated[
        bool,
        Meta(
            description="Generate until the video is cancelled, or has no viewer for a while; only "
            "its last chunks are kept. Instead of a length."
        ),
    ] = False
    seed: Annotated[Seed | None, Meta(extra={"default": "random"})] = None
    pyramid_num_inference_steps_list: Annotated[
        tuple[StepCount, ...] | None, Meta(description="Alias of `steps`, as in diffusers.")
    ] = None
    lora: Annotated[
        str | LoraChoice | None,
        Meta(
            description="Name of a LoRA adapter that the server offers, or an object with `name` "
            "and `scale`, as vLLM-Omni's clients send it."
        ),
    ] = None
    lora_scale: Annotated[float, Meta(description="Scale of the LoRA adapter.")] = 1.0
    extra_params: Annotated[
        dict[str, Any] | None,
        Meta(
            description="Sampling options by the names of vLLM-Omni's Helios pipeline, or by those "
            "of this table."
        ),
    ] = None
    service_tier: Annotated[
        RequestedTier,
        Meta(
            description="priority: real time; flex: runs on capacity that the other tiers leave "
            "idle; auto: default, or the tenant's first allowed tier."
        ),
    ] = "auto"
    user: Annotated[
        str | None, Meta(description="Your identifier of an end user; the server ignores it.")
    ] = None


class RemixVideo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request for a video with another one's seed, size, length and reference, and a
    new prompt.
    """

    prompt: Prompt


class ExtendVideo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to extend a video by `seconds`. Without `prompt`, it keeps its first prompt."""

    video: dict[str, str]
    seconds: float = 4.0
    prompt: Prompt | None = None


class ForkVideo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to continue a video in several ways from its last finished chunk.

    Each entry of `prompts` makes one video; null keeps the video's own prompts. Each gets `seconds`
    more from there on (None: up to the end of the video).
    """

    prompts: Annotated[tuple[Prompt | None, ...], Meta(min_length=1, max_length=MAX_FORKS)]
    seconds: float | None = None


class SwitchPrompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to change the prompt of a running video.

    `transition_chunks` is the number of chunks over which the prompts are blended (None: the
    video's own setting).
    """

    prompt: Prompt
    transition_chunks: int | None = None


class Video(msgspec.Struct, kw_only=True):
    """A video and its progress. Times are Unix seconds; `progress` is 0 to 100.

    The fields from `num_frames` on are not part of OpenAI's API. `inference_time_s` is the time
    from acceptance to the end, as in vLLM-Omni; null until then. `relation` says how the video was
    derived from its parent. A continuation contains only the new frames, because its parent has no
    snapshot to resume from. `num_frames` and `num_chunks` are null for an endless video, whose
    `seconds` are those generated so far.
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
    num_frames: int | None
    fps: int
    seed: int
    phase: str
    chunks_done: int
    num_chunks: int | None
    parent_video_id: str | None
    relation: Relation | None
    queue_position: int | None
    eta_seconds: float | None
    inference_time_s: float | None


class VideoList(msgspec.Struct, kw_only=True):
    """A page of videos."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class VideoDeleted(msgspec.Struct, kw_only=True):
    """The response to a deleted video."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool = True


class FileObject(msgspec.Struct, kw_only=True):
    """An uploaded file or a batch output. `bytes` is its size."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"


class FileList(msgspec.Struct, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(msgspec.Struct, kw_only=True):
    """The response to a deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class CreateBatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request to generate one video for each line of a file."""

    input_file_id: str
    endpoint: Literal["/v1/videos"]
    completion_window: Literal["24h"]
    metadata: dict[BatchKey, BatchValue] | None = None


class BatchCounts(msgspec.Struct):
    """Numbers of a batch's requests: all, completed, and failed."""

    total: int
    completed: int
    failed: int


class BatchErrors(msgspec.Struct, kw_only=True):
    """Errors in a batch's input file."""

    object: Literal["list"] = "list"
    data: tuple[LineError, ...]


class Batch(msgspec.Struct, kw_only=True):
    """A batch and its progress. Times are Unix seconds."""

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
    """A page of batches."""

    object: Literal["list"] = "list"
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchLineResponse(msgspec.Struct, frozen=True):
    """The response to a line's request, as POST /v1/videos would have returned it."""

    status_code: int
    request_id: str
    body: Video | ErrorBody


class BatchLineError(msgspec.Struct, frozen=True):
    """Why a line has no complete video."""

    code: str
    message: str


class BatchOutputLine(msgspec.Struct, frozen=True):
    """The result of one line. `error` is set if the video is not complete."""

    id: str
    custom_id: str
    response: BatchLineResponse
    error: BatchLineError | None


class PromptSwitchedAt(msgspec.Struct, frozen=True):
    """The first chunk, and its first frame, that the new prompt affects."""

    prompt: str
    chunk: int
    frame: int


class Model(msgspec.Struct, kw_only=True):
    """A served model, or a LoRA adapter whose `parent` is the model that it modifies.

    The fields from `sizes` on are not part of OpenAI's API. `sizes` are examples of sizes that the
    model supports, its default first. With `random_weights`, videos show noise. `prompts` are
    examples.
    """

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "helios-serve"
    root: str
    parent: str | None = None
    sizes: list[str]
    random_weights: bool
    prompts: list[str]


class ServerLoad(msgspec.Struct, kw_only=True):
    """The load of the server, by vLLM's name."""

    server_load: int


class ModelList(msgspec.Struct, kw_only=True):
    """All served models."""

    object: Literal["list"] = "list"
    data: list[Model]


class UsageCounts(msgspec.Struct, kw_only=True):
    """Accepted videos, generated frames, and seconds that workers spent on their denoise steps."""

    requests: int = 0
    frames: int = 0
    device_seconds: float = 0.0


class UsageDay(msgspec.Struct, kw_only=True):
    """`UsageCounts` of one day (UTC)."""

    day: date = msgspec.field(name="date")
    requests: int
    frames: int
    device_seconds: float


class FramesQuota(msgspec.Struct, kw_only=True):
    """The daily frame limit and the frames left today. None means no limit."""

    frames_per_day: int | None
    frames_left: int | None
    resets_in_seconds: int


class FilesQuota(msgspec.Struct, kw_only=True):
    """The bytes of a tenant's files, and their limit. None means no limit."""

    bytes: int
    max_file_bytes: int | None


class Usage(msgspec.Struct, kw_only=True):
    """A tenant's usage by day, from `start_date` to `end_date` (UTC, inclusive), and its quota."""

    object: Literal["usage"] = "usage"
    tenant: str
    start_date: date
    end_date: date
    days: list[UsageDay]
    totals: UsageCounts
    quota: FramesQuota
    files: FilesQuota


Json = dict[str, Any]

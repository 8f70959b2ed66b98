/** Texts for a video's state. */

export const isFinished = ({ status }) => status === "completed" || status === "failed";
export const isCancelled = ({ error }) => error?.code === "cancelled";

export function stateOf(video) {
  const { status, phase, progress, queue_position: place, eta_seconds: eta, error, chunks_done: done, num_chunks: count } = video;
  if (status === "completed") return "Complete";
  if (isCancelled(video)) return "Cancelled; finished chunks are kept";
  if (status === "failed") return `Failed: ${error?.message ?? "the video could not be generated"}`;
  if (status === "queued" && place) return `Queued at position ${place}`;
  if (status === "queued") return phase === "encoding" ? "Encoding the prompt" : "Queued";
  const left = eta === null || eta === undefined ? "" : `, about ${duration(eta)} left`;
  if (count === null) return `Live: ${done} chunks so far`;
  return `Generating: ${progress} %, ${done} of ${count} chunks${left}`;
}

export function shortState(video) {
  if (isCancelled(video)) return "cancelled";
  if (video.status === "in_progress" && video.num_chunks === null) return "live";
  return video.status === "in_progress" ? `${video.progress} %` : video.status;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

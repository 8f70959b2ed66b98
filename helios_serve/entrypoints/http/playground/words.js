/** A video's state in a sentence. */

export const isOver = ({ status }) => status === "completed" || status === "failed";
export const isCancelled = ({ error }) => error?.code === "cancelled";

export function stateOf(video) {
  const { status, phase, progress, queue_position: place, eta_seconds: eta, error, chunks_done: done, num_chunks: count } = video;
  if (status === "completed") return "Complete";
  if (isCancelled(video)) return "Cancelled; what was made is kept";
  if (status === "failed") return `Failed: ${error?.message ?? "the video could not be made"}`;
  if (status === "queued" && place) return `Waiting, number ${place} in the queue`;
  if (status === "queued") return phase === "encoding" ? "Reading the prompt" : "Waiting";
  const left = eta === null || eta === undefined ? "" : `, about ${duration(eta)} left`;
  return `Making it: ${progress} %, ${done} of ${count} chunks${left}`;
}

export function shortState(video) {
  if (isCancelled(video)) return "cancelled";
  return video.status === "in_progress" ? `${video.progress} %` : video.status;
}

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`;
}

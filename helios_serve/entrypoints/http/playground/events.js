/** Server-sent events of a video, read with fetch, because EventSource cannot send a key. */

import { ApiError, call, videoPath } from "./api.js";

const ENDS = new Set(["video.completed", "video.failed", "video.cancelled", "video.deleted"]);

/**
 * Call `onEvent` with each event of a video, until the last one. After a lost connection, `onBreak`
 * is called, and the stream resumes after the last event that has an id. Throws ApiError if a retry
 * cannot succeed.
 */
export async function followEvents(id, { signal, onEvent, onBreak }) {
  const position = { last: null, retry: 2000 };
  while (!signal.aborted) {
    try {
      if (await readOnce(id, position, signal, onEvent)) return;
      onBreak();
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && !error.isTemporary) throw error;
      onBreak();
    }
    await pause(position.retry, signal);
  }
}

/** Read one connection to its end. Returns whether the video's last event was received. */
async function readOnce(id, position, signal, onEvent) {
  const headers = position.last === null ? {} : { "last-event-id": position.last };
  const response = await call(videoPath(id, "/events"), { headers, signal });
  if (response.status === 204) return true;
  for await (const { id: number, retry, data } of parse(response.body)) {
    if (retry) position.retry = retry;
    if (!data) continue;
    const event = JSON.parse(data);
    if (signal.aborted) return true;
    onEvent(event);
    if (number) position.last = number;
    if (ENDS.has(event.type)) return true;
  }
  return false;
}

async function* parse(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      text += value;
      const blocks = text.split("\n\n");
      text = blocks.pop();
      yield* blocks.map(fieldsOf);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function fieldsOf(block) {
  const fields = {};
  for (const line of block.split("\n")) {
    const [, name, value] = line.match(/^(\w+): ?(.*)$/) ?? [];
    if (name) fields[name] = value;
  }
  return { ...fields, retry: Number(fields.retry) || 0 };
}

export const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

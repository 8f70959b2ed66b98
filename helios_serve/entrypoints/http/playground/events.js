/** A video's events, read with fetch: EventSource cannot send a key. */

import { ApiError, call, videoPath } from "./api.js";

const ENDS = new Set(["video.completed", "video.failed", "video.cancelled", "video.deleted"]);

/**
 * Hand every event of a video to `onEvent`, each once, until the last one. A connection that breaks
 * is taken up behind the last event that has an id; `onBreak` hears of it. Throws ApiError where
 * coming again would not help.
 */
export async function followEvents(id, { signal, onEvent, onBreak }) {
  const position = { last: null, retry: 2000 };
  while (!signal.aborted) {
    try {
      if (await readOnce(id, position, signal, onEvent)) return;
      onBreak();
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && !error.mayPass) throw error;
      onBreak();
    }
    await pause(position.retry, signal);
  }
}

/** Returns whether the video's last event was told. */
async function readOnce(id, position, signal, onEvent) {
  const headers = position.last === null ? {} : { "last-event-id": position.last };
  const answer = await call(videoPath(id, "/events"), { headers, signal });
  if (answer.status === 204) return true;
  for await (const { id: number, retry, data } of parse(answer.body)) {
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

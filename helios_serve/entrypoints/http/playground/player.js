/** Plays a video while it is generated, by appending its segments to a MediaSource. */

import { ApiError, call, videoPath } from "./api.js";
import { pause } from "./events.js";

const AHEAD = 60;
const BEHIND = 60;
/** Seconds buffered after and before the playback position. Other segments are refetched. */
const Source = globalThis.ManagedMediaSource ?? globalThis.MediaSource;

export const canPlayLive = () => Source !== undefined;

/** Return the H.264 codec string (profile, constraints, level) from the avcC box of a header. */
export function codecOf(header) {
  const bytes = new Uint8Array(header);
  for (let i = 0; i + 8 <= bytes.length; i++) {
    if (String.fromCharCode(...bytes.subarray(i, i + 4)) === "avcC") {
      const hex = [...bytes.subarray(i + 5, i + 8)].map((byte) => byte.toString(16).padStart(2, "0"));
      return `avc1.${hex.join("")}`;
    }
  }
  throw new Error("the video header contains no H.264 stream");
}

const KEPT_CHUNKS = 1000;
/** Number of last chunks that are remembered of a video without an end. */

export class Player {
  /**
   * Play the video `id` with `numFrames` frames at `fps`, from `startAt` seconds if that is
   * available. `onProblem` is called with an error to show, or null to hide it.
   */
  constructor(element, id, { fps, numFrames, startAt, onProblem }) {
    this.element = element;
    this.id = id;
    this.fps = fps;
    this.isLive = numFrames === null; // a video without an end
    this.duration = this.isLive ? Infinity : numFrames / fps;
    this.startAt = startAt;
    this.onProblem = onProblem;
    this.chunks = new Map(); // number to [start, end] in seconds
    this.held = new Set();
    this.isFinished = false;
    this.stopped = new AbortController();
    this.wake = () => {};
    const { signal } = this.stopped;
    for (const name of ["seeking", "timeupdate"]) {
      element.addEventListener(name, () => this.wake(), { signal });
    }
    this.running = this.run().catch((error) => signal.aborted || onProblem(error));
  }

  /** Add a chunk that is available. */
  add({ chunk, first_frame: first, num_frames: count }) {
    this.chunks.set(chunk, [first / this.fps, (first + count) / this.fps]);
    if (this.isLive) this.chunks.delete(chunk - KEPT_CHUNKS);
    this.wake();
  }

  /** Mark the video as finished: no more chunks follow. */
  end() {
    this.isFinished = true;
    this.wake();
  }

  seek(seconds) {
    this.element.currentTime = seconds;
  }

  close() {
    this.stopped.abort();
    this.wake();
    this.element.removeAttribute("src");
    this.element.load();
    URL.revokeObjectURL(this.url);
  }

  chunkAt(seconds) {
    for (const [chunk, [start, end]] of this.chunks) {
      if (start <= seconds && seconds < end) return chunk;
    }
    return null;
  }

  async run() {
    if (!canPlayLive()) return this.playFinished();
    while (!this.chunks.size) {
      if (this.isFinished || this.stopped.signal.aborted) return undefined;
      await this.change();
    }
    const header = await this.load("init.mp4");
    const type = `video/mp4; codecs="${codecOf(header)}"`;
    if (!Source.isTypeSupported(type)) return this.playFinished();
    await this.open(type);
    await this.give(header);
    if (this.element.readyState < 1) await once(this.element, "loadedmetadata");
    const [first] = this.chunks.values();
    this.seek(this.chunkAt(this.startAt) === null ? first[0] : this.startAt);
    this.element.play().catch(() => {}); // browsers may require a click first
    return this.fill();
  }

  async open(type) {
    this.source = new Source();
    this.element.disableRemotePlayback = true; // required to open a ManagedMediaSource
    this.url = URL.createObjectURL(this.source);
    this.element.src = this.url;
    await once(this.source, "sourceopen");
    this.buffer = this.source.addSourceBuffer(type);
    this.source.duration = this.duration;
  }

  /** Keep the segments around the playback position in the buffer. */
  async fill() {
    while (!this.stopped.signal.aborted) {
      const chunk = this.wanted();
      if (chunk === null) {
        if (this.isFinished && this.isLastHeld && this.source.readyState === "open") this.source.endOfStream();
        await this.change();
        continue;
      }
      const data = await this.load(`${chunk}.m4s`);
      if (this.stopped.signal.aborted) return;
      await this.drop(this.element.currentTime - BEHIND);
      await this.append(data, chunk);
    }
  }

  /** Return the next chunk to buffer, or null if none is needed now. */
  wanted() {
    const now = this.element.currentTime;
    for (const [chunk, [start, end]] of this.chunks) {
      if (end > now && !this.held.has(chunk)) return start < now + AHEAD ? chunk : null;
    }
    return null;
  }

  get isLastHeld() {
    return this.held.has(Math.max(...this.chunks.keys()));
  }

  async append(data, chunk) {
    for (;;) {
      try {
        await this.give(data);
        this.held.add(chunk);
        return;
      } catch (error) {
        if (error.name !== "QuotaExceededError" || this.stopped.signal.aborted) throw error;
        await this.drop(this.element.currentTime - 2);
        await this.change();
      }
    }
  }

  /** Remove the chunks that end before `seconds` from the buffer. */
  async drop(seconds) {
    const old = [...this.held].filter((chunk) => this.chunks.get(chunk)[1] <= seconds);
    for (const chunk of old) {
      this.buffer.remove(...this.chunks.get(chunk));
      await once(this.buffer, "updateend");
      this.held.delete(chunk);
    }
  }

  async give(data) {
    this.buffer.appendBuffer(data);
    await once(this.buffer, "updateend");
  }

  async load(name) {
    const { signal } = this.stopped;
    for (;;) {
      try {
        return await (await call(videoPath(this.id, `/hls/${name}`), { signal })).arrayBuffer();
      } catch (error) {
        if (!(error instanceof ApiError) || !error.isTemporary) throw error;
        await pause(1000, signal);
      }
    }
  }

  /** Fallback for browsers without MediaSource: wait for the finished file. */
  async playFinished() {
    this.onProblem(new Error("This browser can play the video only when it is finished."));
    const { signal } = this.stopped;
    while (!this.isFinished) {
      await this.change();
      if (signal.aborted) return;
    }
    const file = await (await call(videoPath(this.id, "/content"), { signal })).blob();
    this.url = URL.createObjectURL(file);
    this.element.src = this.url;
    this.onProblem(null);
  }

  change() {
    return new Promise((resolve) => (this.wake = resolve));
  }
}

const once = (target, name) =>
  new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

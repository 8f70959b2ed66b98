/** Timeline of a video's chunks: finished chunks, playback position and prompt switches. */

import { clock, element } from "./dom.js";

const DENSE = 80;
/** Number of chunks above which there are no gaps between cells. */

export class Timeline {
  /** `onSeek` is called with a position in seconds. */
  constructor(root, onSeek) {
    this.root = root;
    this.marks = root.querySelector(".marks");
    this.cells = root.querySelector(".cells");
    this.pointer = root.querySelector(".position");
    this.onSeek = onSeek;
    root.addEventListener("click", (event) => this.click(event));
    root.addEventListener("keydown", (event) => this.key(event));
  }

  /** A video without an end has no timeline. */
  reset({ num_chunks: count, num_frames: frames, fps }) {
    this.root.hidden = this.isLive = count === null;
    if (this.isLive) return;
    this.count = count;
    this.perChunk = Math.min(33, frames) / fps;
    this.duration = frames / fps;
    this.made = new Set();
    this.playing = null;
    this.cells.classList.toggle("dense", count > DENSE);
    this.cells.replaceChildren(...Array.from({ length: count }, () => element("span")));
    this.marks.replaceChildren();
    this.root.setAttribute("aria-valuemin", 0);
    this.root.setAttribute("aria-valuemax", count - 1);
    this.setPosition(0);
  }

  setMade(chunk) {
    if (this.isLive) return;
    this.made.add(chunk);
    this.cells.children[chunk].className = "made";
    this.describe();
  }

  /** Mark the chunk after the last finished one as being generated, or none. */
  setMaking(isMaking) {
    if (this.isLive) return;
    this.cells.querySelector(".making")?.classList.remove("making");
    const next = this.made.size ? Math.max(...this.made) + 1 : 0;
    if (isMaking && next < this.count) this.cells.children[next].classList.add("making");
  }

  setPosition(seconds) {
    if (this.isLive) return;
    const chunk = Math.min(Math.floor(seconds / this.perChunk + 1e-6), this.count - 1);
    this.pointer.style.left = `${100 * Math.min(1, seconds / this.perChunk / this.count)}%`;
    if (chunk === this.playing) return;
    this.cells.querySelector(".playing")?.classList.remove("playing");
    this.cells.children[chunk].classList.add("playing");
    this.playing = chunk;
    this.describe();
  }

  /** Mark each switch at the start of its chunk, with as much of its prompt as fits. */
  setSwitches(switches) {
    if (this.isLive) return;
    const edges = [...switches.map(({ chunk }) => chunk), this.count];
    const marks = switches.map(({ chunk, prompt, isPending }, index) => {
      const before = index ? edges[index - 1] : 0;
      const room = edges[index + 1] - chunk;
      const isLeft = index === switches.length - 1 && room < (chunk - before) / 2 && !index;
      const mark = element("span", prompt, "mark");
      mark.title = `from chunk ${chunk}: ${prompt}`;
      mark.dataset.chunk = chunk;
      mark.classList.toggle("left", isLeft);
      mark.classList.toggle("pending", isPending);
      const edge = (100 * chunk) / this.count;
      if (isLeft) mark.style.right = `calc(${100 - edge}% - 1px)`;
      else mark.style.left = `calc(${edge}% - 1px)`;
      mark.style.maxWidth = `${(100 * (isLeft ? chunk : room)) / this.count}%`;
      return mark;
    });
    this.marks.replaceChildren(...marks);
  }

  describe() {
    const chunk = this.playing ?? 0;
    const state = this.made.has(chunk) ? "finished" : "not generated yet";
    this.root.setAttribute("aria-valuenow", chunk);
    this.root.setAttribute("aria-valuetext", `chunk ${chunk}, ${clock(chunk * this.perChunk)}, ${state}`);
  }

  click(event) {
    const { left, width } = this.root.getBoundingClientRect();
    this.seek(((event.clientX - left) / width) * this.count * this.perChunk);
  }

  key(event) {
    const chunk = this.playing ?? 0;
    const places = {
      ArrowLeft: chunk - 1,
      ArrowDown: chunk - 1,
      ArrowRight: chunk + 1,
      ArrowUp: chunk + 1,
      PageUp: chunk + 10,
      PageDown: chunk - 10,
      Home: 0,
      End: this.count - 1,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.seek(places[event.key] * this.perChunk);
  }

  /** Seek to a position, limited to the finished chunks. */
  seek(seconds) {
    if (!this.made.size) return;
    const first = Math.min(...this.made) * this.perChunk;
    const last = Math.max(...this.made) * this.perChunk;
    const end = Math.min(last + this.perChunk, this.duration) - 0.05;
    const place = Math.min(Math.max(seconds, first), end);
    this.onSeek(place);
    this.setPosition(place);
  }
}

/** The list of the tenant's videos, newest first, in pages. */

import { call, callJson, videoPath } from "./api.js";
import { element, find, setText } from "./dom.js";
import { pause } from "./events.js";
import { positionOf } from "./positions.js";
import { isFinished, shortState } from "./words.js";

const PAGE = 10;
const EVERY = 3000;
/** Milliseconds between refreshes while a video is running. */

export class VideoList {
  constructor({ onWatch, onDelete }) {
    this.onWatch = onWatch;
    this.onDelete = onDelete;
    this.place = find("videos");
    this.shown = PAGE;
    this.current = null;
    this.videos = [];
    this.requests = 0;
    find("more").addEventListener("click", () => this.more());
  }

  setCurrent(id) {
    this.current = id;
    this.render();
  }

  async more() {
    const before = this.videos.length;
    this.shown += PAGE;
    await this.refresh();
    this.place.children[before]?.querySelector("button").focus();
  }

  /** Fetch as many videos as are shown. The result of an outdated request is ignored. */
  async refresh() {
    const request = ++this.requests;
    try {
      const found = [];
      let page = null;
      do {
        const after = page ? `&after=${encodeURIComponent(page.last_id)}` : "";
        page = await callJson(`/v1/videos?limit=${PAGE}${after}`);
        found.push(...page.data);
      } while (page.has_more && found.length < this.shown);
      if (request !== this.requests) return;
      this.videos = found;
      find("more").hidden = !page.has_more;
      const isEmpty = found.length === 0;
      // Only when that changes: the user may fold the prompts too.
      if (find("list-empty").hidden === isEmpty) find("examples").open = isEmpty;
      find("list-empty").hidden = !isEmpty;
      setText(find("list-error"), null);
      this.render();
    } catch (error) {
      if (request === this.requests) setText(find("list-error"), error.message);
    }
  }

  /** Refresh the list periodically while a video is running. */
  async keepFresh() {
    for (;;) {
      await pause(EVERY);
      if (!document.hidden && this.videos.some((video) => !isFinished(video))) await this.refresh();
    }
  }

  /** Update the rows. Existing rows are reused, so that the focus is kept. */
  render() {
    const rows = new Map([...this.place.children].map((row) => [row.dataset.id, row]));
    const wanted = this.videos.map((video) => {
      const row = rows.get(video.id) ?? this.makeRow(video);
      this.fill(row, video);
      return row;
    });
    wanted.forEach((row, index) => {
      if (this.place.children[index] !== row) this.place.insertBefore(row, this.place.children[index] ?? null);
    });
    while (this.place.children.length > wanted.length) {
      URL.revokeObjectURL(this.place.lastChild.querySelector("img").src);
      this.place.lastChild.remove();
    }
  }

  makeRow({ id, prompt }) {
    const row = element("li");
    row.dataset.id = id;
    const [watch, remove] = [element("button", "Watch"), element("button", "Delete", "danger")];
    const buttons = element("div", "", "buttons");
    buttons.append(watch, remove);
    const picture = Object.assign(element("img"), { alt: "", hidden: true });
    row.append(picture, element("p", prompt, "prompt"), element("p", "", "facts"), element("progress"), buttons);
    row.querySelector("progress").max = 100;
    remove.setAttribute("aria-label", `Delete: ${prompt.slice(0, 60)}`);
    watch.addEventListener("click", () => this.onWatch(id));
    remove.addEventListener("click", () => this.onDelete(this.videos.find((video) => video.id === id)));
    return row;
  }

  fill(row, video) {
    const { id, size, seconds, relation, progress } = video;
    row.setAttribute("aria-current", id === this.current);
    if (video.status === "completed") showPicture(row.querySelector("img"), id);
    const facts = [shortState(video), size, `${Number(seconds).toFixed(1)} s`, relation];
    row.querySelector(".facts").textContent = facts.filter(Boolean).join(" · ");
    const bar = row.querySelector("progress");
    bar.hidden = isFinished(video);
    bar.value = progress;
    bar.setAttribute("aria-label", "progress");
    const watch = row.querySelector("button");
    const action = positionOf(id) > 0 ? "Resume" : "Watch";
    watch.textContent = id === this.current ? "Watching" : action;
    watch.setAttribute("aria-label", `${watch.textContent}: ${video.prompt.slice(0, 60)}`);
  }
}

/** Show a video's first frame, which is fetched once, because an image cannot send the API key. */
async function showPicture(image, id) {
  if (image.dataset.wanted) return;
  image.dataset.wanted = "yes";
  try {
    const response = await call(videoPath(id, "/content?variant=thumbnail"));
    image.src = URL.createObjectURL(await response.blob());
    image.hidden = false;
  } catch {
    delete image.dataset.wanted; // tried again at the next refresh
  }
}

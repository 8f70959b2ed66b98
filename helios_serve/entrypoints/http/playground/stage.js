/** The selected video: player, timeline, prompts and actions. */

import { addressOf, ApiError, apiKey, call, callJson, videoPath } from "./api.js";
import { clock, element, find, onSubmit, setText, showError } from "./dom.js";
import { followEvents } from "./events.js";
import { Player } from "./player.js";
import { forgetPosition, keepPosition, positionOf } from "./positions.js";
import { Timeline } from "./timeline.js";
import { isFinished, stateOf } from "./words.js";

const FORMS = ["extend", "remix"];

export class Stage {
  /**
   * `onCreated` is called with a video derived from this one, `onChange` when this one ends or is
   * cancelled, and `onDelete` with the video to delete.
   */
  constructor({ onCreated, onChange, onDelete }) {
    this.onCreated = onCreated;
    this.onChange = onChange;
    this.screen = find("video");
    this.timeline = new Timeline(find("timeline"), (seconds) => this.player?.seek(seconds));
    this.video = null;
    this.watching = null;
    this.screen.addEventListener("timeupdate", () => this.moved());
    this.screen.addEventListener("waiting", () => this.note());
    this.screen.addEventListener("playing", () => this.note());
    this.setUpForms();
    find("act-delete").addEventListener("click", () => onDelete(this.video));
    find("act-cancel").addEventListener("click", () => this.act(() => this.cancel()));
    find("act-download").addEventListener("click", () => this.act(() => this.download()));
  }

  /** Select a video and resume its playback. Does nothing if it is already selected. */
  async open(id) {
    if (this.video?.id === id) return this.show();
    this.close();
    const watching = new AbortController();
    this.watching = watching;
    try {
      const video = await callJson(videoPath(id), { signal: watching.signal });
      this.begin(video);
      await followEvents(id, {
        signal: watching.signal,
        onEvent: (event) => this.handleEvent(event),
        onBreak: () => setText(find("stage-status"), "The connection was lost. Reconnecting."),
      });
    } catch (error) {
      if (watching.signal.aborted) return undefined;
      if (error instanceof ApiError && error.status === 404) this.close();
      setText(find("stage-status"), error.message);
    }
    return undefined;
  }

  begin(video) {
    this.video = video;
    this.switches = new Map();
    find("stage-title").textContent = video.prompt;
    find("remix-prompt").value = video.prompt;
    for (const id of ["switch", ...FORMS]) showError(find(id), null);
    setText(find("action-error"), null);
    find("switch").querySelector(".note").textContent = "";
    find("stage-body").hidden = false;
    const [width, height] = video.size.split("x").map(Number);
    this.screen.style.aspectRatio = `${width} / ${height}`;
    this.timeline.reset(video);
    this.showSwitches();
    this.showState();
    this.player = new Player(this.screen, video.id, {
      fps: video.fps,
      numFrames: video.num_frames,
      startAt: positionOf(video.id),
      onProblem: (error) => this.note(error?.message),
    });
    this.note();
    this.show();
  }

  /** Scroll the video into view: on a phone, it is below the form. */
  show() {
    const { top } = find("stage").getBoundingClientRect();
    if (top < 0 || top > innerHeight / 2) find("stage").scrollIntoView();
  }

  /** Deselect the video. */
  close(text = "Enter a prompt, or select a video from the list.") {
    this.watching?.abort();
    this.player?.close();
    this.player = this.video = null;
    find("stage-body").hidden = true;
    find("stage-title").textContent = "No video selected";
    setText(find("stage-status"), text);
  }

  handleEvent(event) {
    switch (event.type) {
      case "video.chunk":
        this.timeline.setMade(event.chunk);
        this.video.chunks_done = this.timeline.made.size;
        this.timeline.setMaking(!isFinished(this.video));
        this.player.add(event);
        break;
      case "video.prompt_switched":
        this.addSwitch(event, false);
        break;
      case "video.queued":
      case "video.progress": {
        const { status, phase, progress, queue_position, eta_seconds } = event;
        Object.assign(this.video, { status, phase, progress, queue_position, eta_seconds });
        this.showState();
        break;
      }
      case "video.deleted":
        this.close("This video was deleted.");
        this.onChange();
        break;
      default:
        this.video = event.video;
        this.player.end();
        this.showState();
        this.onChange();
    }
    this.note();
  }

  showState() {
    const finished = isFinished(this.video);
    setText(find("stage-status"), stateOf(this.video));
    find("switch").hidden = finished;
    find("act-cancel").hidden = finished;
    find("act-download").disabled = !(finished && this.video.chunks_done);
    this.timeline.setMaking(!finished);
  }

  /** Add a prompt switch. It replaces those at its chunk and at later ones. */
  addSwitch({ chunk, frame, prompt }, isPending) {
    for (const later of [...this.switches.keys()]) {
      if (later >= chunk) this.switches.delete(later);
    }
    this.switches.set(chunk, { chunk, frame, prompt, isPending });
    this.showSwitches();
  }

  showSwitches() {
    const switches = [...this.switches.values()];
    this.timeline.setSwitches(switches);
    const all = [{ chunk: 0, frame: 0, prompt: this.video.prompt }, ...switches];
    const rows = all.map(({ chunk, frame, prompt, isPending }) => {
      const row = element("li");
      row.dataset.chunk = chunk;
      const when = `${clock(frame / this.video.fps)} · chunk ${chunk}`;
      row.append(element("span", when, "when"), element("span", isPending ? `${prompt} (pending)` : prompt));
      return row;
    });
    find("switches").replaceChildren(...rows);
  }

  moved() {
    if (!this.video) return;
    const { currentTime, ended } = this.screen;
    this.timeline.setPosition(currentTime);
    if (ended) forgetPosition(this.video.id);
    else keepPosition(this.video.id, currentTime);
  }

  /** Show a note over the screen: `text`, or why there is no picture yet. */
  note(text = null) {
    const isEmpty = this.screen.readyState < 2;
    const reason = this.video && isFinished(this.video) ? "This video has no frames." : "Waiting for the first chunk.";
    const emptyText = this.video?.chunks_done ? "" : reason;
    setText(find("screen-note"), text ?? (isEmpty ? emptyText : ""));
  }

  setUpForms() {
    onSubmit(find("switch"), async (fields, form) => {
      const json = Object.fromEntries(fields);
      if (json.transition_chunks) json.transition_chunks = Number(json.transition_chunks);
      const promptSwitch = await callJson(videoPath(this.video.id, "/prompt"), { method: "POST", json });
      this.addSwitch(promptSwitch, true);
      const when = clock(promptSwitch.frame / this.video.fps);
      form.querySelector(".note").textContent = `Takes effect from chunk ${promptSwitch.chunk} on, at ${when}.`;
      find("switch-prompt").value = "";
    });
    onSubmit(find("extend"), async (fields) => {
      const json = { ...Object.fromEntries(fields), video: { id: this.video.id } };
      this.created(await callJson("/v1/videos/extensions", { method: "POST", json }));
    });
    onSubmit(find("remix"), async (fields) => {
      const json = Object.fromEntries(fields);
      this.created(await callJson(videoPath(this.video.id, "/remix"), { method: "POST", json }));
    });
    for (const id of FORMS) find(`act-${id}`).addEventListener("click", () => this.toggle(id));
  }

  created(video) {
    this.toggle(null);
    this.onCreated(video);
  }

  /** Show one form and hide the other. */
  toggle(wanted) {
    for (const id of FORMS) {
      const form = find(id);
      form.hidden = id !== wanted || !form.hidden;
      find(`act-${id}`).setAttribute("aria-expanded", !form.hidden);
      if (!form.hidden) form.querySelector("input").focus();
    }
  }

  async act(action) {
    setText(find("action-error"), null);
    try {
      await action();
    } catch (error) {
      setText(find("action-error"), error.message);
    }
  }

  async cancel() {
    await call(videoPath(this.video.id, "/cancel"), { method: "POST" });
    this.onChange();
  }

  /** Download the file: by a link, or by fetch if the server requires a key. */
  async download() {
    const { id } = this.video;
    const link = element("a");
    link.download = `${id}.mp4`;
    link.href = addressOf(videoPath(id, "/content"));
    if (apiKey()) {
      link.href = URL.createObjectURL(await (await call(videoPath(id, "/content"))).blob());
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    }
    link.click();
  }
}

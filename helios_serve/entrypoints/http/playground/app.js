/** Entry point: creates and connects the parts of the page. */

import { apiKey, call, setApiKey, videoPath } from "./api.js";
import { setUpCreation, showModels } from "./create.js";
import { find, setText } from "./dom.js";
import { VideoList } from "./list.js";
import { showLive } from "./live.js";
import { forgetPosition } from "./positions.js";
import { Stage } from "./stage.js";

const stage = new Stage({ onCreated: watchNew, onChange: () => list.refresh(), onDelete: remove });
const list = new VideoList({ onWatch: watch, onDelete: remove });

/** Show a video. Its id is kept in the address, so that a reload shows it again. */
function watch(id) {
  history.replaceState(null, "", `#${id}`);
  list.setCurrent(id);
  stage.open(id);
}

function watchNew(video) {
  watch(video.id);
  list.refresh();
  find("stage").focus({ preventScroll: true });
}

async function remove(video) {
  if (!(await confirms(video))) return;
  const isWatched = stage.video?.id === video.id;
  try {
    await call(videoPath(video.id), { method: "DELETE" });
  } catch (error) {
    setText(find(isWatched ? "action-error" : "list-error"), error.message);
    return;
  }
  forgetPosition(video.id);
  if (isWatched) {
    history.replaceState(null, "", location.pathname);
    stage.close("The video was deleted.");
  }
  // Before the list is fetched: the user may have moved the focus by then.
  find(isWatched ? "stage" : "list-title").focus();
  await list.refresh();
}

function confirms({ prompt }) {
  const dialog = find("delete-dialog");
  find("delete-what").textContent = prompt;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function setUpKey() {
  const dialog = find("key-dialog");
  find("key-open").addEventListener("click", () => {
    find("key").value = apiKey();
    dialog.showModal();
  });
  find("key-cancel").addEventListener("click", () => dialog.close());
  find("key-form").addEventListener("submit", () => {
    setApiKey(find("key").value.trim(), find("key-keep").checked);
    begin();
  });
}

/** Load everything that depends on the API key. */
async function begin() {
  stage.close();
  await Promise.all([list.refresh(), showModels().catch(() => {})]);
  const id = location.hash.slice(1);
  if (id) watch(id);
}

setUpKey();
setUpCreation(watchNew);
addEventListener("hashchange", () => location.hash.startsWith("#video_") && watch(location.hash.slice(1)));
begin();
showLive();
list.keepFresh();

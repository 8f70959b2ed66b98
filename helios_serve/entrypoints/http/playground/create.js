/** The form for a new video. */

import { callJson } from "./api.js";
import { element, find, onSubmit, setText } from "./dom.js";

const SIZES = ["128x64", "128x128", "640x384", "384x640"];

/** Set up the form. `onCreated` is called with each new video. */
export function setUpCreation(onCreated) {
  const form = find("create");
  find("sizes").append(...SIZES.map((size) => Object.assign(element("option"), { value: size })));
  setUpDrop();
  onSubmit(form, async (fields) => {
    if (fields.has("steps")) fields.set("steps", `[${fields.get("steps")}]`);
    onCreated(await callJson("/v1/videos", { method: "POST", form: fields }));
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

export async function showModels() {
  const { data } = await callJson("/v1/models");
  find("model").replaceChildren(...data.map(({ id }) => new Option(id, id)));
}

function setUpDrop() {
  const [zone, input, clear] = ["drop", "reference", "reference-clear"].map(find);
  const hint = find("reference-name").textContent;
  const show = () => {
    const [file] = input.files;
    find("reference-name").textContent = file ? `${file.name}, ${sizeOf(file)}` : hint;
    clear.hidden = !file;
  };
  const over = (isOver) => (event) => {
    event.preventDefault();
    zone.classList.toggle("over", isOver);
  };
  zone.addEventListener("dragover", over(true));
  zone.addEventListener("dragleave", over(false));
  zone.addEventListener("drop", (event) => {
    over(false)(event);
    if (!event.dataTransfer.files.length) return;
    const transfer = new DataTransfer();
    transfer.items.add(event.dataTransfer.files[0]);
    input.files = transfer.files;
    show();
  });
  input.addEventListener("change", show);
  clear.addEventListener("click", () => {
    input.value = "";
    setText(find("create").querySelector(".error"), null);
    show();
    input.focus();
  });
}

function sizeOf({ size }) {
  return size < 1e6 ? `${Math.ceil(size / 1e3)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

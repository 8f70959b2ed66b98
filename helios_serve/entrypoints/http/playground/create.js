/** The form for a new video. */

import { callJson } from "./api.js";
import { element, find, onSubmit, setText } from "./dom.js";

/** Set up the form. `onCreated` is called with each new video. */
export function setUpCreation(onCreated) {
  const form = find("create");
  setUpDrop();
  find("model").addEventListener("change", showModel);
  onSubmit(form, async (fields) => {
    if (fields.has("steps")) fields.set("steps", `[${fields.get("steps")}]`);
    onCreated(await callJson("/v1/videos", { method: "POST", form: fields }));
  });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

let models = [];

export async function showModels() {
  ({ data: models } = await callJson("/v1/models"));
  find("model").replaceChildren(...models.map(({ id }) => new Option(id, id)));
  showModel();
}

/** Show the sizes and prompts of the selected model, and whether its weights are random. */
function showModel() {
  const { id, sizes, prompts, random_weights: isRandom } = models.find((model) => model.id === find("model").value);
  find("size").replaceChildren(...sizes.map((size) => new Option(size, size)));
  const text = `${id} has random weights: its videos show noise, not the prompt. Serve nano or a checkpoint to see pictures: helios-serve serve BestWishYsh/Helios-Distilled`;
  setText(find("random-weights"), isRandom ? text : null);
  showPrompts(prompts);
}

/** Offer prompts to try: as a list whose items fill the form, and in the field of a switch. */
function showPrompts(prompts) {
  const rows = prompts.map((sample) => {
    const [row, button] = [element("li"), element("button", sample)];
    button.type = "button";
    button.addEventListener("click", () => {
      find("prompt").value = sample;
      find("prompt").focus();
    });
    row.append(button);
    return row;
  });
  find("samples").replaceChildren(...rows);
  find("prompts").replaceChildren(...prompts.map((sample) => new Option(sample, sample)));
  find("prompt").placeholder = prompts[0];
  find("switch-prompt").placeholder = prompts[1];
}

function setUpDrop() {
  const [zone, input, clear] = ["drop", "reference", "reference-clear"].map(find);
  const hint = find("reference-name").textContent;
  const show = () => {
    const [file] = input.files;
    const effect = file?.type.startsWith("video/") ? "is continued by the video" : "is the first frame";
    find("reference-name").textContent = file ? `${file.name}, ${sizeOf(file)}, ${effect}` : hint;
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

/** Helpers for elements, text and forms. */

export const find = (id) => document.getElementById(id);

export function element(name, text = "", className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

/** Format seconds as M:SS.T, such as 1:02.5. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const minutes = Math.floor(tenths / 600);
  return `${minutes}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
}

/** Show a text in an element; hide the element if there is no text. */
export function setText(target, text) {
  target.textContent = text ?? "";
  target.hidden = !text;
}

/** Show an error below the form, and mark the field that it names. Null removes it. */
export function showError(form, error) {
  const field = error?.param && form.elements.namedItem(error.param);
  for (const item of form.elements) item.removeAttribute("aria-invalid");
  const text = error && (error.param ? `${error.param}: ${error.message}` : error.message);
  setText(form.querySelector(".error"), text);
  if (field?.focus) {
    field.setAttribute("aria-invalid", "true");
    const folded = field.closest("details");
    if (folded) folded.open = true;
    field.focus();
  }
}

/** Run `action` when the form is submitted, one at a time, and show its errors. */
export function onSubmit(form, action) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("[type=submit]");
    if (button.disabled) return;
    button.disabled = true;
    showError(form, null);
    try {
      await action(fieldsOf(form), form);
    } catch (error) {
      showError(form, error);
    } finally {
      button.disabled = false;
    }
  });
}

/** Return the fields of a form that are not empty. */
function fieldsOf(form) {
  const fields = new FormData(form);
  for (const [name, value] of [...fields]) {
    const isEmpty = value instanceof File ? !value.size && !value.name : !value.trim();
    if (isEmpty) fields.delete(name);
  }
  return fields;
}

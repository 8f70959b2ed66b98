/** The server's API: requests that carry the key, and errors as the server tells them. */

const NAME = "helios-api-key";

export const apiKey = () => sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";

/** Keep the key in this tab, or beyond it; an empty one is forgotten. */
export function setApiKey(secret, beyond) {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
  if (secret) (beyond ? localStorage : sessionStorage).setItem(NAME, secret);
}

/** An answer other than the one that was asked for; `param` names the field at fault. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }

  /** Whether the same request may do better later. */
  get mayPass() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The response, if it is a good one; throws ApiError otherwise. */
export async function call(path, { method = "GET", json, form, headers = {}, signal } = {}) {
  const sent = new Headers(headers);
  if (apiKey()) sent.set("authorization", `Bearer ${apiKey()}`);
  if (json !== undefined) sent.set("content-type", "application/json");
  const body = json === undefined ? form : JSON.stringify(json);
  let answer;
  try {
    answer = await fetch(path, { method, headers: sent, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server cannot be reached");
  }
  if (answer.ok) return answer;
  throw await errorOf(answer);
}

export const callJson = async (path, options) => (await call(path, options)).json();

export const videoPath = (id, rest = "") => `/v1/videos/${encodeURIComponent(id)}${rest}`;

async function errorOf(answer) {
  const { status } = answer;
  if (status === 401) return new ApiError("this server needs an API key: choose “API key” above", { status });
  try {
    const { message, param } = (await answer.json()).error;
    return new ApiError(message, { status, param });
  } catch {
    return new ApiError(`the server answered ${status}`, { status });
  }
}

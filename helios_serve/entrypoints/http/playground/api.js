/** Client of the server's API: sends the API key, and throws the server's errors. */

const NAME = "helios-api-key";

export const apiKey = () => sessionStorage.getItem(NAME) ?? localStorage.getItem(NAME) ?? "";

/** Store the key in this tab, or permanently in the browser. An empty key is removed. */
export function setApiKey(secret, permanently) {
  sessionStorage.removeItem(NAME);
  localStorage.removeItem(NAME);
  if (secret) (permanently ? localStorage : sessionStorage).setItem(NAME, secret);
}

/** An error response; `param` names the invalid field. Status 0: the server was not reached. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }

  /** Whether the same request may succeed later. */
  get isTemporary() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** The address of a path of the server, which a proxy may serve below a prefix. */
export const addressOf = (path) => new URL(path.replace(/^\//, ""), document.baseURI);

/** Send a request and return the response. Throws ApiError for an error response. */
export async function call(path, { method = "GET", json, form, headers = {}, signal } = {}) {
  const allHeaders = new Headers(headers);
  if (apiKey()) allHeaders.set("authorization", `Bearer ${apiKey()}`);
  if (json !== undefined) allHeaders.set("content-type", "application/json");
  const body = json === undefined ? form : JSON.stringify(json);
  let response;
  try {
    response = await fetch(addressOf(path), { method, headers: allHeaders, body, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("the server cannot be reached");
  }
  if (response.ok) return response;
  throw await errorOf(response);
}

export const callJson = async (path, options) => (await call(path, options)).json();

export const videoPath = (id, rest = "") => `/v1/videos/${encodeURIComponent(id)}${rest}`;

async function errorOf(response) {
  const { status } = response;
  if (status === 401) return new ApiError("this server requires an API key: click “API key” above", { status });
  try {
    const { message, param } = (await response.json()).error;
    return new ApiError(message, { status, param });
  } catch {
    return new ApiError(`the server returned status ${status}`, { status });
  }
}

/** The server's health and metrics, updated every two seconds while the page is visible. */

import { addressOf, call } from "./api.js";
import { find, setText } from "./dom.js";
import { pause } from "./events.js";

const EVERY = 2000;
const WINDOW = 10;
/** Seconds over which frames per second are averaged. */

/** On a phone, the numbers are folded until the user opens them. */
function foldOnPhones() {
  const wide = matchMedia("(min-width: 761px)");
  const fold = () => (find("live").open = wide.matches);
  wide.addEventListener("change", fold);
  fold();
}

export async function showLive() {
  foldOnPhones();
  const counts = [];
  for (;;) {
    if (!document.hidden) await Promise.all([showHealth(), showNumbers(counts)]);
    await pause(EVERY);
  }
}

async function showHealth() {
  const pill = find("health");
  let [text, state] = ["unreachable", "bad"];
  try {
    const response = await fetch(addressOf("/health"), { cache: "no-store" });
    const { status, errors } = await response.json();
    const states = { ok: ["ready", "ok"], starting: ["starting", "wait"] };
    [text, state] = states[status] ?? [status, "bad"];
    pill.title = Object.values(errors).join("\n");
  } catch {
    pill.title = "";
  }
  pill.dataset.state = state;
  if (pill.textContent !== text) pill.textContent = text;
}

async function showNumbers(counts) {
  try {
    const numbers = parse(await (await call("/metrics")).text());
    show(numbers, rateOf(counts, numbers("frames_generated_total")));
    setText(find("live-problem"), null);
  } catch (error) {
    setText(find("live-problem"), `Metrics are unavailable: ${error.message}`);
  }
}

function show(numbers, rate) {
  const [used, total] = [numbers("history_blocks_used"), numbers("history_blocks")];
  const texts = {
    workers: `${numbers("worker_up")} of ${numbers("worker_up", "", true)}`,
    running: numbers("num_sessions", 'state="running"'),
    waiting: numbers("num_sessions", 'state="waiting"'),
    tasks: numbers("num_tasks_waiting"),
    blocks: `${used.toLocaleString("en")} / ${total.toLocaleString("en")}`,
    fps: rate === null ? "–" : rate.toFixed(1),
  };
  for (const [name, text] of Object.entries(texts)) find(`live-${name}`).textContent = text;
  find("live-meter").max = total || 1;
  find("live-meter").value = used;
}

/** Parse metrics. Returns a function that sums, or counts, the samples of a metric with a label. */
function parse(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = line.match(/^helios:(\w+)(\{.*\})? (\S+)$/);
    if (match) samples.push({ name: match[1], labels: match[2] ?? "", value: Number(match[3]) });
  }
  return (name, label = "", isCount = false) =>
    samples
      .filter((sample) => sample.name === name && sample.labels.includes(label))
      .reduce((sum, { value }) => sum + (isCount ? 1 : value), 0);
}

/** Return frames per second over the last WINDOW seconds; null before the second count. */
function rateOf(counts, frames) {
  const now = performance.now() / 1000;
  if (counts.length && frames < counts.at(-1).frames) counts.length = 0; // the server was restarted
  counts.push({ now, frames });
  while (counts.length > 2 && now - counts[0].now > WINDOW) counts.shift();
  const [first] = counts;
  return counts.length < 2 ? null : (frames - first.frames) / (now - first.now);
}

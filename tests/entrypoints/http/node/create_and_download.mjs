// Creates a video, waits for it, and downloads it, as users of the official client do:
//     node create_and_download.mjs BASE_URL FILE.mp4
// Prints the video as JSON.

import { writeFile } from "node:fs/promises";
import OpenAI from "openai";

const [baseURL, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none" });

let video = await client.videos.create({ prompt: "a dog runs", size: "64x64", seed: 3, num_frames: 40 });
while (video.status === "queued" || video.status === "in_progress") {
  await new Promise((resolve) => setTimeout(resolve, 100));
  video = await client.videos.retrieve(video.id);
}
if (video.status !== "completed") {
  throw new Error(`the video is ${video.status}: ${JSON.stringify(video.error)}`);
}
const content = await client.videos.downloadContent(video.id);
await writeFile(path, Buffer.from(await content.arrayBuffer()));
console.log(JSON.stringify(video));

// Drives RunPod's JavaScript client: node client.mjs BASE_URL ENDPOINT ACTION JSON → one line of JSON.
//
//   runSync, run              JSON is the whole request: {"input": …, "policy": …}
//   status, cancel, stream    JSON is the id of a job; stream gives the list of what was yielded
//   health                    no JSON
//
// A refused call (HTTP 4xx, 5xx, a timeout) is {"thrown": message} and exit status 1.
// The package is looked for in .venv/node, as nothing is installed into the checkout.

import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

console.log = console.error; // runSync logs its polls to stdout; set before the import, which keeps a reference
const packages = createRequire(new URL("../../.venv/node/package.json", import.meta.url));
const { default: runpodSdk } = await import(pathToFileURL(packages.resolve("runpod-sdk")));

const TIMEOUT_MS = 30000; // the client's own 3000 is short for a busy machine
const [baseUrl, endpointId, action, payload] = process.argv.slice(2);
const endpoint = runpodSdk("any-key", { baseUrl }).endpoint(endpointId);

async function act(argument) {
  if (action === "health") return endpoint.health(TIMEOUT_MS);
  if (action !== "stream") return endpoint[action](argument, TIMEOUT_MS);
  const chunks = [];
  for await (const chunk of endpoint.stream(argument, TIMEOUT_MS)) chunks.push(chunk);
  return chunks;
}

let result;
try {
  result = await act(payload && JSON.parse(payload));
} catch (error) {
  result = { thrown: String(error.message) };
  process.exitCode = 1;
}
process.stdout.write(JSON.stringify(result) + "\n");

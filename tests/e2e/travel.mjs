// One client of the TypeScript SDK on the itinerary of travel.py: `node travel.mjs PLAN`, PLAN being JSON. Prints what it saw.
//
// sdk: ts1 (@modelcontextprotocol/sdk) or ts2 (@modelcontextprotocol/client); way: relay, handover, http, sse, websocket.

import { readFileSync } from "node:fs";
import { setTimeout as pause } from "node:timers/promises";

const plan = JSON.parse(process.argv[2]);
const load = (path) => import(`file://${plan.modules}/${path}`);
const first = plan.sdk === "ts1";

const capabilities = { elicitation: {}, sampling: {}, roots: {} };
const offers = {
  "elicitation/create": () => ({ action: "accept", content: { name: "Ann" } }),
  "sampling/createMessage": () => ({ role: "assistant", content: { type: "text", text: "deep" }, model: "m" }),
  "roots/list": () => ({ roots: [{ uri: "file:///a" }, { uri: "file:///b" }] }),
};

async function transports() {
  if (!first) {
    return { ...(await load("client/dist/index.mjs")), ...(await load("client/dist/stdio.mjs")) };
  }
  const names = ["index", "stdio", "streamableHttp", "sse", "websocket"];
  return Object.assign({}, ...(await Promise.all(names.map((name) => load(`sdk/dist/esm/client/${name}.js`)))));
}

const sdk = await transports();
const who = { name: "travel", version: "1" };
const client = first
  ? new sdk.Client(who, { capabilities })
  : new sdk.Client(who, { capabilities, versionNegotiation: { mode: plan.mode } });

let changes = 0;
const types = first ? await load("sdk/dist/esm/types.js") : null;
const heard = () => {
  changes += 1;
};
if (first) {
  client.setRequestHandler(types.ElicitRequestSchema, offers["elicitation/create"]);
  client.setRequestHandler(types.CreateMessageRequestSchema, offers["sampling/createMessage"]);
  client.setRequestHandler(types.ListRootsRequestSchema, offers["roots/list"]);
  client.setNotificationHandler(types.ToolListChangedNotificationSchema, heard);
} else {
  for (const [method, offer] of Object.entries(offers)) {
    client.setRequestHandler(method, offer);
  }
  client.setNotificationHandler("notifications/tools/list_changed", heard);
}

function transport() {
  switch (plan.way) {
    case "http":
      return new sdk.StreamableHTTPClientTransport(new URL(plan.url));
    case "sse":
      return new sdk.SSEClientTransport(new URL(plan.url));
    case "websocket":
      return new sdk.WebSocketClientTransport(new URL(plan.url));
    default:
      return new sdk.StdioClientTransport({ command: plan.command, args: plan.args, env: plan.env, stderr: "ignore" });
  }
}

const { prefix } = plan; // what names begin with, where there are several backends
const call = (own, given = {}, options = undefined) => {
  const params = { name: prefix + own, arguments: given };
  return first ? client.callTool(params, undefined, options) : client.callTool(params, options);
};

async function told(asked) {
  try {
    const result = await asked;
    const denial = result._meta?.["aegis/denial"];
    return [denial ? denial.code : result.isError ? "failed" : "ok", result.content[0].text];
  } catch (error) {
    if (error.code === undefined) throw error;
    // The first SDK puts the number into the text too.
    return [error.code, error.message.replace(/^MCP error -?\d+: /, "")];
  }
}

async function comes(what) {
  for (let n = 0; n < 500; n++) {
    if (what()) return true;
    await pause(10);
  }
  return false;
}

const noted = (line) => {
  try {
    return readFileSync(plan.log, "utf8").split("\n").some((each) => `${each} `.startsWith(`${line} `));
  } catch {
    return false;
  }
};

async function changed(modern) {
  const open = modern ? await client.listen({ toolsListChanged: true }) : null;
  for (let n = 0; n < 40 && !changes; n++) {
    await call("news");
    for (let m = 0; m < 50 && !changes; m++) await pause(10);
  }
  await open?.close();
  return changes ? ["ToolsListChanged"] : [];
}

const way = transport();
await client.connect(way);
const version = first ? types.LATEST_PROTOCOL_VERSION : client.getNegotiatedProtocolVersion();
const seen = { version, server: client.getServerVersion()?.name };
const ours = (await client.listTools()).tools.filter((tool) => tool.name.startsWith(prefix));
seen.tools = Object.fromEntries(ours.map((tool) => [tool.name.slice(prefix.length), tool.description]));
seen.memo = (await client.readResource({ uri: "memo://by-name/x" })).contents[0].text;
seen.review = (await client.getPrompt({ name: `${prefix}review`, arguments: { code: "c" } })).messages[0].content.text;
seen.add = (await call("add", { a: 1, b: 2 })).structuredContent;
seen.fail = await told(call("fail", { text: "no luck" }));
const progress = [];
const onprogress = (step) => progress.push([step.progress, step.total, step.message]);
seen.walk = await told(call("walk", { count: 3 }, { onprogress }));
seen.progress = progress;
seen.asks = [
  await told(call("greet", { greeting: "hi" })),
  await told(call("wonder", { topic: "x" })),
  await told(call("where")),
];
seen.changed = await changed(version === "2026-07-28");

const giveUp = new AbortController();
const asked = call("sleep", { key: plan.key }, { signal: giveUp.signal }).catch(() => {});
if (!(await comes(() => noted(`call ${plan.key}`)))) throw new Error("the call that is given up never arrived");
giveUp.abort();
await asked;
seen.woken = await comes(() => noted(`woken ${plan.key}`));

seen.drop = await told(call("drop", { text: plan.key }));
seen.posts = [];
for (const n of [1, 2, 3]) seen.posts.push(await told(call("post", { text: `${plan.key}-${n}` })));

await way.terminateSession?.();
await client.close();
console.log(JSON.stringify(seen));
process.exit(0);

// A client of the TypeScript SDK that gives up after a while, as impatient.py: `node impatient.mjs PLAN`, PLAN being JSON.
//
// sdk: ts1 (@modelcontextprotocol/sdk) or ts2 (@modelcontextprotocol/client); way: stdio or http.

import { createInterface } from "node:readline";

const plan = JSON.parse(process.argv[2]);
const load = (path) => import(`file://${plan.modules}/${path}`);
const first = plan.sdk === "ts1";

async function transports() {
  if (!first) {
    return { ...(await load("client/dist/index.mjs")), ...(await load("client/dist/stdio.mjs")) };
  }
  const names = ["index", "stdio", "streamableHttp"];
  return Object.assign({}, ...(await Promise.all(names.map((name) => load(`sdk/dist/esm/client/${name}.js`)))));
}

const sdk = await transports();
const who = { name: plan.name, version: "1" };
const client = first
  ? new sdk.Client(who, { capabilities: {} })
  : new sdk.Client(who, { capabilities: {}, versionNegotiation: { mode: plan.mode } });
const way =
  plan.way === "http"
    ? new sdk.StreamableHTTPClientTransport(new URL(plan.url))
    : new sdk.StdioClientTransport({ command: plan.command, args: plan.args, env: plan.env, stderr: "ignore" });

async function seen(ask) {
  const params = { name: "post", arguments: ask.arguments };
  const options = { timeout: ask.timeout * 1000 };
  try {
    const result = await (first ? client.callTool(params, undefined, options) : client.callTool(params, options));
    const { isError, content, _meta } = result;
    return { kind: "result", text: content[0].text, failed: Boolean(isError), meta: _meta ?? {} };
  } catch (error) {
    const own = /timed out/i.test(error.message) && !/"by":"aegis"/.test(JSON.stringify(error.data ?? null));
    return { kind: own ? "timeout" : "error", code: error.code ?? null, text: error.message };
  }
}

const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);
await client.connect(way);
say({ kind: "ready" });
for await (const line of createInterface({ input: process.stdin })) {
  say(await seen(JSON.parse(line)));
}
await way.terminateSession?.();
await client.close();
process.exit(0);

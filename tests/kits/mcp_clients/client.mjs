// An agent with the TypeScript SDK: lists the tools, calls those that it is told to, and prints what it got as one line of JSON.
// Usage: node client.mjs FOLDER {"url", "headers", "mode": "auto" | "legacy" | {"pin": VERSION} | "v1", "calls": [[name, arguments]]}
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [folder, text] = process.argv.slice(2);
const { url, headers, mode, calls } = JSON.parse(text);
const load = (name) => import(pathToFileURL(createRequire(`${folder}/none.js`).resolve(name)));

const first = mode === 'v1'; // the SDK's version 1: earlier revisions alone
const { Client } = await load(first ? '@modelcontextprotocol/sdk/client/index.js' : '@modelcontextprotocol/client');
const { StreamableHTTPClientTransport } = await load(
  first ? '@modelcontextprotocol/sdk/client/streamableHttp.js' : '@modelcontextprotocol/client');

const client = new Client({ name: 'tests', version: '1' }, first ? {} : { versionNegotiation: { mode } });
const transport = new StreamableHTTPClientTransport(new URL(url), { requestInit: { headers } });
await client.connect(transport);
const version = first ? transport.protocolVersion : client.getNegotiatedProtocolVersion();
const { tools } = await client.listTools();
const results = [];
for (const [name, args] of calls) {
  try {
    results.push(await client.callTool({ name, arguments: args }));
  } catch (error) {
    results.push({ raised: error.constructor.name, code: error.code, message: error.message });
  }
}
await client.close();
console.log(JSON.stringify({ version, server: client.getServerVersion(), tools, results }));
process.exit(0);

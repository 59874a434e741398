// Asks @clerk/backend about each case on standard input: {token, accepts, options, now}. One JSON line for each verdict.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const { createClerkClient } = createRequire(`${process.argv[2]}/`)("@clerk/backend");
const { key, publishable } = JSON.parse(process.argv[3]);
const clerk = createClerkClient({ secretKey: "sk_live_unused", publishableKey: publishable, jwtKey: key });
globalThis.fetch = () => Promise.reject(new Error("no network"));

for await (const line of createInterface({ input: process.stdin })) {
  const { token, accepts, options, now } = JSON.parse(line);
  Date.now = () => now * 1000;
  const request = new Request("http://api.example.com/x", { headers: { Authorization: `Bearer ${token}` } });
  let verdict;
  try {
    const state = await clerk.authenticateRequest(request, { acceptsToken: accepts, jwtKey: key, ...options });
    const auth = state.toAuth();
    verdict = state.isAuthenticated && auth
      ? { type: auth.tokenType, subject: auth.userId ?? auth.subject, scopes: auth.scopes ?? null, id: auth.id ?? null }
      : { reason: state.reason };
  } catch (error) {
    verdict = { reason: `throws ${error.constructor.name}` };
  }
  console.log(JSON.stringify(verdict));
}

// tracebridge's ids, for Node.js, Bun and Deno: a gateway's plugin, a script, a worker.
"use strict";
const { createHash } = require("node:crypto");

const hex = (text) => createHash("sha256").update(text, "utf8").digest("hex");

const traceId = (agent, sessionId, turnKey) =>
  hex(`tracebridge/1\n${agent}\n${sessionId}\n${turnKey}`).slice(0, 32);

const spanId = (traceId, kind, key) => hex(`${traceId}\n${kind}\n${key}`).slice(0, 16);

// What a gateway sends on so that whatever its upstream traces lies under the turn; null where the
// request does not say whose it is. Names of headers are in lower case, as Node.js has them.
const traceparent = (headers) => {
  const session = headers["x-claude-code-session-id"];
  const prompt = headers["x-claude-code-prompt-id"];
  if (!session || !prompt) return null;
  const trace = traceId("claude-code", session, prompt);
  return `00-${trace}-${spanId(trace, "turn", "")}-01`;
};

module.exports = { traceId, spanId, traceparent };

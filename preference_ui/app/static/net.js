// Talking to the server. An answer counts as saved only when the server says so, which it does after its commit;
// until then a copy stays in this browser and is sent again, also after the page was closed.

import { remember } from "./dom.js";

export class ServerError extends Error {
  constructor(status, body) {
    super(body.error || `http ${status}`);
    this.status = status;
    this.code = body.error || "server";
    this.detail = body.detail || "";
  }
  // Worth trying again as it stands.
  get isPassing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

// "Today" begins at this reader's midnight.
const ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const TIMEOUT_MS = 20_000;

// All tabs of a browser share one login. Each call says whom this page was loaded for, so that nothing of one person
// is taken for another's who has logged in meanwhile; `whenOther(name)` hears that somebody has.
let me = null;
let hearOther = () => {};
export function speakFor(id, whenOther) {
  me = id;
  hearOther = whenOther;
}

function request(name, body) {
  const headers = { "X-Rlhf-Zone": ZONE, ...(me ? { "X-Rlhf-Person": me } : {}) };
  const options = { method: "GET", headers, credentials: "same-origin" };
  if (body === undefined) return [`/api/${name}`, options];
  const isFile = body instanceof Blob;
  headers["Content-Type"] = isFile ? "application/octet-stream" : "application/json";
  return [`/api/${name}`, { ...options, method: "POST", body: isFile ? body : JSON.stringify(body) }];
}

// `body`: values to send as JSON, or a file to send as it is.
export async function call(name, body, timeout = TIMEOUT_MS) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), timeout);
  try {
    const [address, options] = request(name, body);
    const reply = await fetch(address, { ...options, signal: stop.signal });
    const answer = await reply.json();
    if (reply.ok) return answer;
    if (answer.error === "person") hearOther(answer.detail);
    throw new ServerError(reply.status, answer);
  } catch (error) {
    if (error instanceof ServerError) throw error;
    throw new ServerError(0, { error: "offline" });
  } finally {
    clearTimeout(timer);
  }
}

// A call that outlives the page. Nobody hears its answer.
export function callAndLeave(name, body) {
  const [address, options] = request(name, body);
  fetch(address, { ...options, keepalive: true }).catch(() => null);
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Outbox {
  // `me` keeps two people on one browser apart; `onState(error)` hears null when sending begins, and each failure
  // after which it is tried again.
  constructor(me, onState) {
    this.key = `rlhf:outbox:${me}`;
    this.onState = onState;
  }
  list() {
    return remember.get(this.key) || [];
  }
  keep(entry) {
    remember.set(this.key, [...this.list().filter((e) => e.id !== entry.id), entry]);
  }
  drop(id) {
    const rest = this.list().filter((e) => e.id !== id);
    if (rest.length) remember.set(this.key, rest);
    else remember.remove(this.key);
  }
  // Send until the server has taken or refused it. The same lease and revision may arrive any number of times, but only
  // with the same vote: what is sent is a copy that no later move changes.
  async send(given) {
    const entry = structuredClone(given);
    this.keep(entry);
    this.onState(null);
    for (let attempt = 0; ; attempt += 1) {
      try {
        const answer = await call(entry.path, entry.body);
        this.drop(entry.id);
        return answer;
      } catch (error) {
        // Logged out: it goes on by itself after a login in another tab.
        const waits = error.isPassing || error.status === 401;
        // Kept for its author: for the next login, or until it is shown again beside the questions it does not fit.
        if (!waits && error.code !== "person" && error.code !== "data") this.drop(entry.id);
        if (!waits) throw error;
        this.onState(error);
      }
      await pause(Math.min(5_000, 500 * 2 ** attempt));
    }
  }
  // What an earlier visit could not send. Refused ones are returned, for their author to see.
  async flush() {
    const refused = [];
    for (const entry of this.list()) {
      try {
        await this.send({ ...entry, body: { ...entry.body, next: false } });
      } catch (error) {
        if (error.code === "person") throw error;
        refused.push({ entry, error });
      }
    }
    return refused;
  }
}

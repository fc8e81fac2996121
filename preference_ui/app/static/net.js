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

const TIMEOUT_MS = 20_000;

export async function call(name, body) {
  const stop = new AbortController();
  const timer = setTimeout(() => stop.abort(), TIMEOUT_MS);
  try {
    const reply = await fetch(`/api/${name}`, {
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      signal: stop.signal,
    });
    const answer = await reply.json();
    if (!reply.ok) throw new ServerError(reply.status, answer);
    return answer;
  } catch (error) {
    if (error instanceof ServerError) throw error;
    throw new ServerError(0, { error: "offline" });
  } finally {
    clearTimeout(timer);
  }
}

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export class Outbox {
  // `me` keeps two people on one browser apart; `onState(state)` hears "pending", "offline", "login".
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
  // Send until the server has taken or refused it. The same lease and revision may arrive any number of times.
  async send(entry) {
    this.keep(entry);
    for (let attempt = 0; ; attempt += 1) {
      this.onState(attempt ? "offline" : "pending");
      try {
        const answer = await call(entry.path, entry.body);
        this.drop(entry.id);
        return answer;
      } catch (error) {
        if (error.status === 401) {
          this.onState("login");
          throw error;
        }
        if (!error.isPassing) {
          this.drop(entry.id);
          throw error;
        }
      }
      await pause(Math.min(5_000, 500 * 2 ** attempt));
    }
  }
  // What an earlier visit could not send. Refused ones are returned, so that they can be shown.
  async flush() {
    const refused = [];
    for (const entry of this.list()) {
      try {
        await this.send({ ...entry, body: { ...entry.body, next: false } });
      } catch (error) {
        if (error.status === 401) throw error;
        refused.push({ entry, error });
      }
    }
    return refused;
  }
}

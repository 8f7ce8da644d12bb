// A tool worker's side of janus.tools.v1.ToolWorkerService/Connect: registers, takes calls, keeps results until the
// server has them for good, and connects again for as long as it takes.

import { randomUUID } from "node:crypto";
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const MiB = 1024 * 1024;
const FIRST_BACKOFF_MS = 100;
const LONGEST_BACKOFF_MS = 5_000;
const REGISTER_MS = 15_000;
const MOST_WORDS = 1_024;
// Nothing that trying again would change.
const FINAL = new Set(["INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED"]);

/** What a tool says to the model instead of a result. Of any other error the model learns only that the tool failed. */
export class ToolError extends Error {}

export class Worker {
  /**
   * @param {string} target where Janus listens, `host:port` or `dns:///name:port`
   * @param {{tenant?: string, workerId?: string, concurrency?: number, protos?: string}} options `tenant` is for
   *   servers with the development identity; `protos` is the folder of Janus's protos, if it is not this repository's
   */
  constructor(target, { tenant = "", workerId = "", concurrency = 8, protos = "" } = {}) {
    this.workerId = workerId || `${hostname()}-${process.pid}-${randomUUID().slice(0, 8)}`;
    this.concurrency = concurrency;
    this.tools = new Map();
    this.running = new Map(); // by call id: the call's AbortController
    this.results = new Map(); // by call id: what `completed` says, until the server has it for good
    this.connection = null;
    this.stopping = false;
    this.isLate = false;
    this.metadata = new grpc.Metadata();
    if (tenant) this.metadata.set("janus-tenant", tenant);
    const includeDirs = [protos || here("../../../protos/"), here("protos/")];
    const definition = loadSync("janus/tools/v1/tool_worker_service.proto", {
      includeDirs, keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true,
    });
    const { ToolWorkerService } = grpc.loadPackageDefinition(definition).janus.tools.v1;
    this.stub = new ToolWorkerService(target, grpc.credentials.createInsecure(), {
      "grpc.max_receive_message_length": 16 * MiB,
      "grpc.max_send_message_length": 16 * MiB,
      "grpc.keepalive_time_ms": 30_000,
      "grpc.keepalive_timeout_ms": 10_000,
      "grpc.initial_reconnect_backoff_ms": 100,
      "grpc.max_reconnect_backoff_ms": 1_000,
    });
  }

  /** Serve `run(args, call)` as a tool. `description` and `parameters`, a JSON Schema, are what the model is told. */
  tool({ name, description = "", parameters, sideEffect = "AT_MOST_ONCE", timeoutS = 60 }, run) {
    const offered = {
      name, description,
      parameters_schema_json: parameters ? JSON.stringify(parameters) : "",
      side_effect: `SIDE_EFFECT_${sideEffect}`,
      timeout: { seconds: Math.floor(timeoutS), nanos: Math.round((timeoutS % 1) * 1e9) },
    };
    this.tools.set(name, { offered, run });
  }

  /** Serve until `stop`. Rejects when the server does not take this worker, and will not. */
  async serve() {
    let backoff = FIRST_BACKOFF_MS;
    while (!this.isDone) {
      this.connection = new Connection(this);
      const status = await this.connection.ended;
      const wasTaken = this.connection.isRegistered;
      this.connection = null;
      if (FINAL.has(status.name)) throw new Error(`${status.name}: ${status.details}`);
      if (this.isDone) break;
      if (wasTaken) backoff = FIRST_BACKOFF_MS;
      console.log(`the connection ended: ${status.details || status.name}; connecting again`);
      await sleep(backoff * (0.5 + Math.random() / 2));
      backoff = Math.min(backoff * 2, LONGEST_BACKOFF_MS);
    }
    this.stub.close();
  }

  /** Take no more calls, finish those that run, for at most so long, and have `serve` end. */
  stop(drainMs = 30_000) {
    this.stopping = true;
    this.connection?.drain();
    setTimeout(() => {
      this.isLate = true;
      this.connection?.end({ name: "OK", details: "the worker has stopped" });
    }, drainMs).unref();
  }

  get isDone() {
    return this.stopping && (this.isLate || (!this.running.size && !this.results.size));
  }

  async run(call) {
    const abort = new AbortController();
    this.running.set(call.call_id, abort);
    const progress = (fraction, message = "") =>
      this.connection?.say({ progress: { call_id: call.call_id, fraction, message: message.slice(0, MOST_WORDS) } });
    let outcome;
    try {
      const { run } = this.tools.get(call.tool);
      const answer = await run(JSON.parse(call.arguments_json || "{}"), {
        idempotencyKey: call.idempotency_key, attempt: call.attempt, runId: call.run_id, threadId: call.thread_id,
        subject: call.subject, signal: abort.signal, progress,
      });
      outcome = { result: { parts: [{ text: typeof answer === "string" ? answer : JSON.stringify(answer ?? null) }] } };
    } catch (error) {
      let text = "the tool failed";
      if (error instanceof ToolError) text = error.message;
      // A tool that heeds its signal throws; nobody waits for what it would have answered.
      else if (abort.signal.aborted) text = "the call was cancelled";
      else console.error(`${call.tool} failed:`, error);
      outcome = { result: { parts: [{ text }], is_error: true } };
    }
    // Nobody waits for the result of a call that was dropped meanwhile.
    if (!this.running.delete(call.call_id)) return;
    this.results.set(call.call_id, { call_id: call.call_id, ...outcome });
    this.connection?.tellResults();
  }
}

/** One stream. `ended` is fulfilled with its status. */
class Connection {
  constructor(worker) {
    this.worker = worker;
    this.isRegistered = false;
    this.known = new Set(); // calls that the server knows this connection to have
    this.sent = new Set(); // results that went over this connection,
    this.asked = new Set(); // and those that did so before the newest heartbeat
    this.awaitsBeat = false;
    this.hasDrained = false;
    this.beats = null;
    this.leaseMs = REGISTER_MS;
    this.stream = worker.stub.connect(worker.metadata);
    this.ended = new Promise((resolve) => {
      this.end = (status) => {
        clearInterval(this.beats);
        clearTimeout(this.silence);
        this.stream.cancel();
        resolve(status);
      };
    });
    this.stream.on("data", (response) => this.hear(response));
    this.stream.on("status", ({ code, details }) => this.end({ name: grpc.status[code], details }));
    // What it says is in the status as well.
    this.stream.on("error", () => {});
    this.heard();
    const tools = [...worker.tools.values()].map((tool) => tool.offered);
    this.stream.write({ register: { worker_id: worker.workerId, tools, credits: worker.concurrency } });
  }

  /** A server that is silent for longer than the lease is given up. */
  heard() {
    clearTimeout(this.silence);
    this.silence = setTimeout(
      () => this.end({ name: "UNAVAILABLE", details: "nothing was heard of the server" }), this.leaseMs,
    );
  }

  say(message) {
    if (this.isRegistered && !this.stream.destroyed) this.stream.write(message);
  }

  hear(response) {
    this.heard();
    const { worker } = this;
    switch (response.message) {
      case "registered":
        this.isRegistered = true;
        this.leaseMs = milliseconds(response.registered.lease);
        this.beats = setInterval(() => this.beat(), milliseconds(response.registered.heartbeat_interval));
        console.log(`registered as ${worker.workerId}`);
        // With the calls of earlier connections.
        this.beat();
        if (worker.stopping) this.drain();
        break;
      case "call":
        this.known.add(response.call.call_id);
        worker.run(response.call);
        break;
      case "cancel": {
        const id = response.cancel.call_id;
        worker.running.get(id)?.abort(response.cancel.reason);
        // The credit of a call that this connection has comes back with its result, also now.
        if (!this.known.has(id)) {
          worker.running.delete(id);
          worker.results.delete(id);
        }
        break;
      }
      case "heartbeat":
        this.confirm(new Set(response.heartbeat.call_ids));
        break;
      case "drain":
        // What runs is taken to the next connection, which is made at once.
        this.end({ name: "OK", details: "the server asks to connect anew" });
        break;
      case "closed": {
        const { code, message } = response.closed.status ?? {};
        // A stream that drains is ended once the server has every result.
        if (!code) for (const id of this.sent) worker.results.delete(id);
        this.end({ name: grpc.status[code || 0], details: message ?? "" });
        break;
      }
    }
  }

  /** Tell the server what this worker has; one question at a time, so that its answer is to this one. */
  beat() {
    if (this.awaitsBeat) return;
    this.awaitsBeat = true;
    this.asked = new Set(this.sent);
    const unsent = [...this.worker.results.keys()].filter((id) => !this.sent.has(id));
    this.say({ heartbeat: { call_ids: [...this.worker.running.keys(), ...unsent] } });
  }

  /** The server has for good what it was sent before it was asked, and does not hold any more. */
  confirm(held) {
    this.awaitsBeat = false;
    for (const id of held) this.known.add(id);
    for (const id of this.asked) {
      if (held.has(id)) continue;
      this.sent.delete(id);
      this.worker.results.delete(id);
    }
    this.tellResults();
  }

  tellResults() {
    for (const [id, completed] of this.worker.results) {
      if (!this.known.has(id) || this.sent.has(id)) continue;
      this.say({ completed });
      this.sent.add(id);
    }
  }

  drain() {
    if (this.hasDrained || !this.isRegistered) return;
    this.hasDrained = true;
    this.say({ drain: { reason: "the worker stops" } });
  }
}

function here(path) {
  return fileURLToPath(new URL(path, import.meta.url));
}

function milliseconds({ seconds, nanos }) {
  return seconds * 1_000 + nanos / 1e6;
}

// A worker with three tools: one that only looks, one that may be repeated, one that must not be.

import { setTimeout as sleep } from "node:timers/promises";
import { ToolError, Worker } from "./janus.js";

const worker = new Worker(process.env.JANUS_TARGET ?? "127.0.0.1:50051", {
  tenant: process.env.JANUS_TENANT ?? "",
  protos: process.env.JANUS_PROTOS ?? "",
});

const stock = new Map([["tea", 3], ["coffee", 5]]);
const reserved = new Map();

const item = (description) => ({
  type: "object",
  properties: { item: { type: "string", ...(description && { description }) } },
  required: ["item"],
  additionalProperties: false,
});

worker.tool(
  {
    name: "shop.stock",
    description: "How many of an item are in stock.",
    parameters: item("tea or coffee"),
    sideEffect: "READ_ONLY",
    timeoutS: 5,
  },
  async ({ item }) => {
    if (!stock.has(item)) throw new ToolError(`we do not sell ${item}`);
    return stock.get(item);
  },
);

worker.tool(
  { name: "shop.reserve", description: "Puts one of an item aside.", parameters: item(), sideEffect: "IDEMPOTENT" },
  async ({ item }, call) => {
    // A second try has the same key, and so reserves nothing more.
    if (!reserved.has(call.idempotencyKey)) {
      if (!stock.get(item)) throw new ToolError(`there is no ${item} left`);
      stock.set(item, stock.get(item) - 1);
      reserved.set(call.idempotencyKey, item);
    }
    return `one ${item} is put aside`;
  },
);

worker.tool(
  { name: "shop.brew", description: "Brews a cup. What is brewed cannot be unbrewed.", parameters: item() },
  async ({ item }, call) => {
    for (let step = 1; step <= 4; step++) {
      await sleep(250, undefined, { signal: call.signal });
      call.progress(step / 4, "brewing");
    }
    return { cup: item, temperature: 70 + Math.floor(Math.random() * 21) };
  },
);

for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => worker.stop());
await worker.serve();

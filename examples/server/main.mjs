#!/usr/bin/env node
// @ts-check
// An inference server on lean-attention: puts the parts together, listens, and on SIGTERM or SIGINT lets running requests
// finish. `node examples/server/main.mjs --help` lists the options.
import { openDevice } from 'lean-attention';
import { ApiError } from './api.mjs';
import { Batcher } from './batcher.mjs';
import { readConfig } from './config.mjs';
import { createHttpServer } from './http.mjs';
import { createMetrics } from './metrics.mjs';
import { createToyModel } from './model.mjs';

/**
 * What keeps the server from starting is one sentence, not a stack trace.
 *
 * @template T
 * @param {() => T} make
 */
function orExit(make) {
  try {
    return make();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(2);
  }
}

const config = orExit(() => readConfig(process.argv.slice(2), process.env));
if (typeof config === 'string') {
  console.log(config); // --help
  process.exit(0);
}

const { drainSeconds } = config;

const { device, model, cache } = orExit(() => {
  const { dtype, pageTokens, cacheTokens: tokens, threads, strategy } = config;
  const device = openDevice(config.device, threads === 0 ? {} : { threads });
  const model = createToyModel(device, { seed: config.modelSeed, schedule: { strategy } }); // a real model goes here
  return { device, model, cache: device.createKvCache({ ...model.cacheShape, dtype, pageTokens, tokens }) };
});

const metrics = createMetrics(() => ({ running: batcher.running, waiting: batcher.waiting, ...cache.stats() }));
const batcher = new Batcher(model, cache, config, metrics.events);

let stopping = false;
const server = createHttpServer({
  batcher,
  model,
  metrics,
  maxBody: config.maxBody,
  isStopping: () => stopping,
});

/** Requests that have no whole answer yet. */
let answering = 0;
server.on('request', (_, response) => {
  answering += 1;
  response.on('close', () => {
    answering -= 1;
  });
});

server.on('error', (error) => {
  console.error(error.message); // the port is taken, or not ours to take
  process.exit(1);
});

server.listen(config.port, config.host, () => {
  const address = /** @type {import('node:net').AddressInfo} */ (server.address());
  const host = address.family === 'IPv6' ? `[${address.address}]` : address.address;
  console.log(`${model.name} on ${device.description}`);
  console.log(`Listening on http://${host}:${address.port}`);
});

/** Takes no more requests, lets those that are here finish, and ends when all have; at the deadline all end. */
async function stop() {
  if (stopping) process.exit(1); // asked twice: at once
  stopping = true;
  const closed = new Promise((resolve) => server.close(resolve));
  const deadline = setTimeout(() => {
    batcher.abort(new ApiError(503, 'shutting_down', 'The server is shutting down'));
    setTimeout(() => server.closeAllConnections(), 1000).unref(); // for clients that do not read their answers
  }, drainSeconds * 1000);
  await batcher.close();
  // Connections on which nobody waits are cut: kept alive, or opened in advance.
  const sweep = setInterval(() => answering === 0 && server.closeAllConnections(), 20);
  await closed;
  clearInterval(sweep);
  clearTimeout(deadline);
  cache.verify();
  cache.dispose();
  device.dispose();
}
process.on('SIGTERM', stop);
process.on('SIGINT', stop);

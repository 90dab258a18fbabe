#!/usr/bin/env node
// @ts-check
// Load: many clients at once that behave as clients do. Some stream to the end, some go half-way, some never listen, some
// send nonsense. Reports what the server made of it, and exits 1 when a page of its cache got lost or an answer was wrong.
//
//   node examples/server/load.mjs [--clients 24] [--steps 2000] [--seed 1] [--json] [--url URL | -- server flags]
import { spawn } from 'node:child_process';
import { Agent, request } from 'node:http';
import { connect } from 'node:net';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { random } from './sampling.mjs';

const split = process.argv.indexOf('--') === -1 ? process.argv.length : process.argv.indexOf('--');
const { values: flags } = parseArgs({
  args: process.argv.slice(2, split),
  options: {
    clients: { type: 'string', default: '24' },
    steps: { type: 'string', default: '2000' },
    seed: { type: 'string', default: '1' },
    url: { type: 'string' },
    json: { type: 'boolean', default: false },
  },
});

/** Starts a server of our own. @returns {Promise<{ url: string, stop: () => Promise<number | null> }>} */
async function startServer() {
  const main = fileURLToPath(new URL('main.mjs', import.meta.url));
  const child = spawn(process.execPath, [main, '--port', '0', ...process.argv.slice(split + 1)], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  process.on('exit', () => child.kill('SIGKILL')); // however this ends, it takes the server along
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));
  const exited = new Promise((resolve) => child.on('exit', resolve));
  for await (const line of createInterface(child.stdout)) {
    const url = /Listening on (\S+)/.exec(line)?.[1];
    if (url === undefined) continue;
    const stop = () => {
      child.kill('SIGTERM');
      return exited;
    };
    return { url, stop };
  }
  throw new Error('The server did not start');
}

const started = flags.url === undefined ? await startServer() : { url: flags.url, stop: async () => 0 };
const url = started.url;
const agent = new Agent({ keepAlive: true });
const completions = `${url}/v1/completions`;

/** @type {Record<string, number>} What the clients did, and what they were answered. */
const counts = {};
/** @param {string} name */
const count = (name) => {
  counts[name] = (counts[name] ?? 0) + 1;
};
/** @type {number[]} */
const latencies = [];
/** @type {number[]} */
const firstTokens = [];
/** @type {string[]} */
const wrong = [];

/** Sends a body; resolves with the answer's head. @param {string | Buffer} body */
const post = (body) => {
  const call = request(completions, { method: 'POST', agent, headers: { 'Content-Type': 'application/json' } });
  const answer = new Promise((resolve, reject) => call.on('response', resolve).on('error', reject));
  call.end(body);
  return { call, answer: /** @type {Promise<import('node:http').IncomingMessage>} */ (answer) };
};

/** @param {import('node:http').IncomingMessage} answer */
async function textOf(answer) {
  let text = '';
  for await (const chunk of answer.setEncoding('utf8')) text += chunk;
  return text;
}

/** The server's figures, by name with labels. @returns {Promise<Map<string, number>>} */
async function readMetrics() {
  const page = await (await fetch(`${url}/metrics`)).text();
  const lines = page.split('\n').filter((line) => line !== '' && !line.startsWith('#'));
  return new Map(
    lines.map((line) => [line.slice(0, line.lastIndexOf(' ')), Number(line.slice(line.lastIndexOf(' ')))]),
  );
}

/** @typedef {() => number} Uniform */
/** @param {Uniform} uniform @param {number} low @param {number} high */
const between = (uniform, low, high) => low + Math.floor(uniform() * (high - low + 1));

/** @param {Uniform} uniform @param {boolean} stream @param {number} longest */
const ask = (uniform, stream, longest = 80) =>
  JSON.stringify({
    prompt: 'The quick brown fox. '.repeat(10).slice(0, between(uniform, 0, 200)),
    max_tokens: between(uniform, 1, longest),
    temperature: uniform() < 0.3 ? 0 : 1,
    seed: between(uniform, 0, 1e6),
    stream,
  });

/** Streams; `goAfter` tokens the client is gone. @param {Uniform} uniform @param {number} goAfter */
async function stream(uniform, goAfter) {
  const begin = performance.now();
  const { call, answer } = post(ask(uniform, true, goAfter === Infinity ? 80 : 400));
  const response = await answer;
  if (response.statusCode !== 200) return refused(response);
  let events = '';
  let first;
  for await (const chunk of response.setEncoding('utf8')) {
    first ??= performance.now() - begin;
    events += chunk;
    if (events.split('\n\n').length > goAfter) {
      call.destroy();
      return count('went half-way');
    }
  }
  if (!events.endsWith('data: [DONE]\n\n')) wrong.push(`a stream ended with ${events.slice(-200)}`);
  latencies.push(performance.now() - begin);
  firstTokens.push(first ?? 0);
  count('streamed');
}

/** No room is an answer too, and so is that a small cache can never hold so much. @param {import('node:http').IncomingMessage} response */
async function refused(response) {
  const text = await textOf(response);
  if (response.statusCode === 400 && text.includes('"context_length_exceeded"')) return count('told it is too long');
  if (response.statusCode !== 429) wrong.push(`status ${response.statusCode}: ${text}`);
  count('told to come back');
  await sleep(50);
}

/** What clients do, each as often as it says in a hundred. @type {[number, (uniform: Uniform) => Promise<unknown>][]} */
const BEHAVIOURS = [
  [50, (uniform) => stream(uniform, Infinity)],
  [15, (uniform) => stream(uniform, between(uniform, 1, 40)).catch(() => count('went half-way'))],
  [
    15,
    async (uniform) => {
      const begin = performance.now();
      const response = await post(ask(uniform, false)).answer;
      if (response.statusCode !== 200) return refused(response);
      const { choices } = JSON.parse(await textOf(response));
      if (typeof choices?.[0]?.finish_reason !== 'string') wrong.push('an answer without a finish reason');
      latencies.push(performance.now() - begin);
      count('answered');
    },
  ],
  [
    10,
    async (uniform) => {
      const nonsense = [
        '{',
        '[]',
        '{"prompt":7}',
        '{"prompt":"a","max_tokens":1e9}',
        Buffer.from([0xff, 0xfe]),
        'x'.repeat(3e6),
      ];
      const response = await post(nonsense[between(uniform, 0, nonsense.length - 1)]).answer;
      const body = JSON.parse(await textOf(response));
      const status = response.statusCode ?? 0;
      if (status < 400 || status >= 500 || typeof body.error?.message !== 'string') {
        wrong.push(`nonsense was answered ${status} ${JSON.stringify(body)}`);
      }
      count('sent nonsense');
    },
  ],
  [
    5,
    async (uniform) => {
      const { call, answer } = post(ask(uniform, uniform() < 0.5, 400));
      answer.catch(() => {});
      await sleep(between(uniform, 0, 20));
      call.destroy();
      count('disconnected');
    },
  ],
  [
    5,
    async (uniform) => {
      const socket = connect(Number(new URL(url).port), new URL(url).hostname).on('error', () => {});
      socket.write('POST /v1/completions HTTP/1.1\r\nHost: here\r\nContent-Length: 500\r\n\r\n{"prompt": "half a');
      await sleep(between(uniform, 0, 20));
      socket.destroy();
      count('sent half a request');
    },
  ],
];

let running = true;

/** One client, until it is told to stop. @param {number} seed */
async function client(seed) {
  const uniform = random(seed);
  const deck = BEHAVIOURS.flatMap(([weight, behave]) => new Array(weight).fill(behave));
  while (running) await deck[between(uniform, 0, deck.length - 1)](uniform);
}

/** @param {number[]} values @param {number} share */
const percentile = (values, share) =>
  values.sort((a, b) => a - b)[Math.floor(share * (values.length - 1))] ?? Number.NaN;

const before = await readMetrics();
const begin = performance.now();
const clients = Array.from({ length: Number(flags.clients) }, (_, index) => client(Number(flags.seed) + index));
const all = Promise.all(clients);
/** @param {Map<string, number>} metrics @param {string} name */
const of = (metrics, name) => metrics.get(name) ?? Number.NaN;
/** @param {Map<string, number>} metrics @param {string} name */
const grown = (metrics, name) => of(metrics, name) - of(before, name);

let metrics = before;
let warm = before; // after a tenth of the steps: what grows from there on grows for ever
while (grown(metrics, 'server_steps_total') < Number(flags.steps)) {
  await Promise.race([sleep(200), all]); // `all` only ends here when a client failed, and then throws
  metrics = await readMetrics();
  if (warm === before && grown(metrics, 'server_steps_total') * 10 >= Number(flags.steps)) warm = metrics;
}
running = false;
await all;
const seconds = (performance.now() - begin) / 1000;
const busy = () => of(metrics, 'server_running_requests') + of(metrics, 'server_queue_length') > 0;
for (let wait = 0; wait < 100; ++wait) {
  metrics = await readMetrics();
  if (!busy()) break;
  await sleep(100);
}
agent.destroy();
const exitCode = await started.stop();

const stepCount = grown(metrics, 'server_steps_total');
const milliseconds = (/** @type {number} */ value) => Number(value.toFixed(2));
const megabytes = (/** @type {Map<string, number>} */ page) =>
  Number((of(page, 'process_resident_memory_bytes') / 2 ** 20).toFixed(1));
const report = {
  seconds: Number(seconds.toFixed(1)),
  steps: stepCount,
  generatedTokensPerSecond: Math.round(grown(metrics, 'server_generated_tokens_total') / seconds),
  promptTokensPerSecond: Math.round(grown(metrics, 'server_prompt_tokens_total') / seconds),
  meanBatch: Number((grown(metrics, 'server_batch_size_sum') / stepCount).toFixed(1)),
  meanStepMs: milliseconds((1000 * grown(metrics, 'server_step_seconds_sum')) / stepCount),
  latencyP50Ms: milliseconds(percentile(latencies, 0.5)),
  latencyP99Ms: milliseconds(percentile(latencies, 0.99)),
  firstTokenP50Ms: milliseconds(percentile(firstTokens, 0.5)),
  firstTokenP99Ms: milliseconds(percentile(firstTokens, 0.99)),
  eventLoopDelayP99Ms: milliseconds(1000 * of(metrics, 'server_event_loop_delay_seconds{quantile="0.99"}')),
  eventLoopDelayMaxMs: milliseconds(1000 * of(metrics, 'server_event_loop_delay_seconds{quantile="1"}')),
  preemptions: grown(metrics, 'server_preemptions_total'),
  failed: grown(metrics, 'server_requests_total{outcome="failed"}'),
  clients: counts,
  memoryStartMiB: megabytes(before),
  memoryWarmMiB: megabytes(warm),
  memoryEndMiB: megabytes(metrics),
  stillBusy: busy(),
  pagesLost: of(metrics, 'server_pages_used'),
  serverExitCode: exitCode,
  wrong: wrong.slice(0, 10),
};
if (flags.json) console.log(JSON.stringify(report));
else console.log(report);
const good = !report.stillBusy && report.pagesLost === 0 && report.failed === 0 && exitCode === 0 && wrong.length === 0;
process.exitCode = good ? 0 : 1;

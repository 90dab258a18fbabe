// The example's server as a process of its own, and what its clients do. Whatever is started here is gone when the test is.
import { type ChildProcess, spawn } from 'node:child_process';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const examples = path.join(fileURLToPath(new URL('../..', import.meta.url)), 'examples/server');

const children = new Set<ChildProcess>();
process.on('exit', () => killServers());

/** Ends what a failed test left behind: twice asked, a server goes at once, and the load script takes its own along. */
export function killServers(): void {
  for (const child of children) {
    child.kill('SIGTERM');
    child.kill('SIGINT');
  }
}

function start(script: string, flags: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const child = spawn(process.execPath, [path.join(examples, script), ...flags], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  children.add(child);
  child.on('exit', () => children.delete(child));
  return child;
}

/** Runs a script of the example to its end. */
export async function runExample(script: string, flags: readonly string[]) {
  const child = start(script, flags);
  const ended = { code: null as number | null, output: '', errors: '' };
  child.stdout.on('data', (data) => {
    ended.output += data;
  });
  child.stderr.on('data', (data) => {
    ended.errors += data;
  });
  ended.code = await new Promise((resolve) => child.on('close', resolve));
  return ended;
}

export interface Completion {
  prompt?: unknown;
  max_tokens?: unknown;
  temperature?: unknown;
  seed?: unknown;
  stop?: unknown;
  stream?: unknown;
  [other: string]: unknown;
}

interface Answer {
  status: number;
  headers: Headers;
  body: {
    choices: { text: string; finish_reason: string | null }[];
    usage: { prompt_tokens: number; completion_tokens: number; total_tokens: number };
    error: { message: string; type: string; param: string | null; code: string };
    [other: string]: unknown;
  };
}

export class Server {
  readonly url: string;
  readonly #child: ChildProcess;
  /** Exit code, or the signal that ended it. */
  readonly exited: Promise<number | string | null>;
  /** What it wrote to stderr. */
  errors = '';

  constructor(url: string, child: ChildProcess) {
    this.url = url;
    this.#child = child;
    this.exited = new Promise((resolve) => child.on('exit', (code, signal) => resolve(code ?? signal)));
    child.stderr?.on('data', (data) => {
      this.errors += data;
    });
  }

  /** `body` as JSON, or as it is when it is a string or bytes. */
  post(body: Completion | string | Uint8Array, signal?: AbortSignal): Promise<Response> {
    const raw = typeof body === 'string' || body instanceof Uint8Array;
    return fetch(`${this.url}/v1/completions`, {
      method: 'POST',
      body: raw ? body : JSON.stringify(body),
      ...(signal && { signal }),
    });
  }

  async complete(body: Completion | string | Uint8Array): Promise<Answer> {
    const response = await this.post(body);
    return { status: response.status, headers: response.headers, body: (await response.json()) as Answer['body'] };
  }

  /** The events of a stream as they come, without `data: `. */
  async *events(body: Completion, signal?: AbortSignal): AsyncGenerator<string> {
    const response = await this.post({ ...body, stream: true }, signal);
    if (response.status !== 200 || response.body === null) throw new Error(await response.text());
    let held = '';
    for await (const chunk of response.body.pipeThrough(new TextDecoderStream())) {
      const pieces = (held + chunk).split('\n\n');
      held = pieces.pop() as string;
      for (const piece of pieces) yield piece.replace(/^data: /, '');
    }
    if (held !== '') throw new Error(`A stream ended with ${held}`);
  }

  /** Text and finish reason of a whole stream. */
  async stream(body: Completion): Promise<{ text: string; reason: string | null; pieces: number }> {
    const events = [];
    for await (const event of this.events(body)) events.push(event);
    if (events.pop() !== '[DONE]') throw new Error('A stream ended without [DONE]');
    const choices = events.map((event) => (JSON.parse(event) as Answer['body']).choices[0]);
    return {
      text: choices.map(({ text }) => text).join(''),
      reason: choices.at(-1)?.finish_reason ?? null,
      pieces: choices.length,
    };
  }

  /** The figures of /metrics, by name with labels. */
  async metrics(): Promise<Map<string, number>> {
    return parseMetrics(await (await fetch(`${this.url}/metrics`)).text());
  }

  async metric(name: string): Promise<number> {
    const value = (await this.metrics()).get(name);
    if (value === undefined) throw new Error(`There is no metric ${name}`);
    return value;
  }

  /** Waits until a metric has a value. */
  async until(name: string, holds: (value: number) => boolean): Promise<void> {
    for (let tries = 0; !holds(await this.metric(name)); ++tries) {
      if (tries === 1000) throw new Error(`${name} stayed ${await this.metric(name)}`);
      await sleep(5);
    }
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  async stop(): Promise<number | string | null> {
    this.signal('SIGTERM');
    return this.exited;
  }
}

/** Reads Prometheus' text format strictly: what a line may not be throws. */
export function parseMetrics(page: string): Map<string, number> {
  if (!page.endsWith('\n')) throw new Error('The last line does not end');
  const values = new Map<string, number>();
  const types = new Map<string, string>();
  for (const line of page.slice(0, -1).split('\n')) {
    const comment = /^# (HELP|TYPE) ([a-z_]+) (.+)$/.exec(line);
    if (comment !== null) {
      if (comment[1] === 'TYPE') types.set(comment[2], comment[3]);
      continue;
    }
    const sample = /^([a-z_]+)(\{[a-z]+="[^"\\]*"\})? (-?[\d.]+(?:e[+-]?\d+)?)$/.exec(line);
    if (sample === null) throw new Error(`Not a sample: ${line}`);
    const [, name, labels = '', value] = sample;
    const family = types.has(name) ? name : name.replace(/_(bucket|sum|count)$/, '');
    if (!['counter', 'gauge', 'histogram'].includes(types.get(family) ?? '')) throw new Error(`No type: ${line}`);
    if (values.has(name + labels)) throw new Error(`Twice: ${line}`);
    values.set(name + labels, Number(value));
  }
  return values;
}

/** Starts a server on a free port. */
export async function startServer(flags: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<Server> {
  const child = start('main.mjs', ['--port', '0', ...flags], env);
  for await (const line of createInterface(child.stdout)) {
    const url = /^Listening on (\S+)$/.exec(line)?.[1];
    if (url !== undefined) return new Server(url, child);
  }
  throw new Error('The server did not start');
}

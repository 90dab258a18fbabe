// Lifecycle: what ends, goes or moves while calls are in flight. What could take a process down runs in a process of its own.
import { spawn } from 'node:child_process';
import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { DecodeOptions } from 'lean-attention';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { build, type Case } from './helpers/cases';
import { expectClose, expectSameBits } from './helpers/compare';
import { LeanAttentionError, openDevice, referenceDecode, tensor } from './helpers/library';

const root = fileURLToPath(new URL('..', import.meta.url));
const device = openDevice('cpu', { threads: 2 });
afterAll(() => device.dispose());

const collectGarbage = globalThis.gc as () => void;

const SMALL: Case = {
  contexts: [200, 0, 65],
  queryLen: 1,
  numKvHeads: 2,
  groupSize: 2,
  headDim: 32,
  pageTokens: 16,
  layout: 'NHD',
  placement: 'plain',
  qType: 'f32',
  kvType: 'f32',
  seed: 1,
};

/** A call of some tens of milliseconds: many query rows over a context of moderate size. */
function heavy(): DecodeOptions {
  const contexts = [20_000];
  return build({ ...SMALL, contexts, numKvHeads: 1, groupSize: 16, queryLen: 16, headDim: 64, pageTokens: 0 });
}

interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  output: string;
}

/** Runs JavaScript against the built package in a process of its own. */
function run(script: string, timeout = 50_000, flags: string[] = []): Promise<Ended> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [...flags, '-e', script], { cwd: root, timeout, killSignal: 'SIGKILL' });
    let output = '';
    child.stdout.on('data', (data) => (output += data));
    child.stderr.on('data', (data) => (output += data));
    child.on('close', (code, signal) => resolve({ code, signal, output }));
  });
}

/** What scripts begin with: a device, and a call whose size in tokens they choose. */
const PRELUDE = `
  const { openDevice, tensor } = require(${JSON.stringify(path.join(root, 'dist/index.js'))});
  const call = (tokens, rows = 8) => ({
    q: tensor(new Float32Array(rows * 64).fill(1), [1, rows, 64]),
    k: tensor(new Float32Array(tokens * 64).fill(1), [1, tokens, 1, 64]),
    v: tensor(new Float32Array(tokens * 64).fill(2), [1, tokens, 1, 64]),
  });
  const right = ({ out }) => out.data.every((value) => Math.abs(value - 2) < 1e-4);
`;

async function expectSuccess(script: string, timeout?: number, flags?: string[]): Promise<void> {
  expect(await run(PRELUDE + script, timeout, flags)).toEqual({ code: 0, signal: null, output: 'done\n' });
}

describe('dispose', () => {
  test('during calls: they end as if nothing had happened', async () => {
    const options = build(SMALL);
    const reference = referenceDecode(options);
    for (let round = 0; round < 20; ++round) {
      const own = openDevice('cpu', { threads: 2 });
      const calls = Array.from({ length: 8 }, () => own.decode(options));
      own.dispose();
      expect(own.disposed).toBe(true);
      for (const result of await Promise.all(calls)) expectClose(result, reference);
    }
  });

  test('by `using`, and twice', () => {
    let kept: typeof device;
    {
      using own = openDevice('cpu', { threads: 1 });
      kept = own;
      own.dispose();
    }
    expect(kept.disposed).toBe(true);
    kept.dispose();
  });
});

describe('garbage collection', () => {
  test('of device, plan, tensors and results while calls are in flight', async () => {
    const options = build(SMALL);
    const reference = referenceDecode(options);
    for (let round = 0; round < 20; ++round) {
      const start = () => {
        const own = openDevice('cpu', { threads: 2 });
        const copy = (t: DecodeOptions['q']) => tensor(t.data.slice(), t.shape, { dtype: t.dtype, strides: t.strides });
        const { contextLengths, ...rest } = options;
        const plan = own.plan({
          numQueryHeads: 4,
          numKvHeads: 2,
          headDim: 32,
          kvType: 'f32',
          contextLengths: contextLengths as Int32Array,
          workers: 7,
        });
        const tensors = { ...rest, q: copy(options.q), k: copy(options.k), v: copy(options.v) };
        return [
          plan.decode(tensors),
          own.decode({ ...tensors, contextLengths: contextLengths as Int32Array, workers: 7 }),
        ];
      };
      const calls = start();
      collectGarbage();
      const [planned, plain] = await Promise.all(calls);
      collectGarbage();
      expectClose(planned, reference);
      expectSameBits(planned, plain);
    }
  });

  test('of results that nobody waits for', async () => {
    await expectSuccess(
      `(async () => {
        for (let round = 0; round < 30; ++round) {
          let device = openDevice('cpu', { threads: 2 });
          for (let i = 0; i < 5; ++i) device.decode(call(2000));
          device = undefined;
          gc();
          await new Promise(setImmediate);
          gc();
        }
        console.log('done');
      })();`,
      50_000,
      ['--expose-gc'],
    );
  });
});

describe('arrays given to a call', () => {
  test('lengths and pages are copied: changing them right after the call has no effect', async () => {
    const options = build({ ...SMALL, contexts: [5000, 3000], pageTokens: 8 });
    const reference = referenceDecode(options);
    for (const workers of [1, 5]) {
      const lengths = Int32Array.from(options.contextLengths as Int32Array);
      const pages = Int32Array.from(options.pageTable as Int32Array);
      const promise = device.decode({ ...options, workers, contextLengths: lengths, pageTable: pages });
      lengths.fill(2 ** 31 - 1);
      pages.fill(2 ** 31 - 1);
      expectClose(await promise, reference);
    }
  });

  test('a plan keeps its own lengths', () => {
    const contextLengths = Int32Array.of(64, 64);
    const plan = device.plan({ numQueryHeads: 1, numKvHeads: 1, headDim: 8, contextLengths });
    contextLengths.fill(-1);
    plan.contextLengths.fill(-1);
    expect(plan.contextLengths).toEqual(Int32Array.of(64, 64));
    expect(plan.segments().map(({ tokenEnd }) => tokenEnd)).toEqual([64, 64]);
  });

  test('memory shared with other threads works', async () => {
    const shared = build({ ...SMALL, placement: 'shared' });
    expect(shared.k.data.buffer).toBeInstanceOf(SharedArrayBuffer);
    const out = tensor(new Float32Array(new SharedArrayBuffer(3 * 4 * 32 * 4)), [3, 4, 32]);
    const lse = tensor(new Float32Array(new SharedArrayBuffer(3 * 4 * 4)), [3, 4]);
    const reference = referenceDecode(shared);
    expectClose(device.decodeSync({ ...shared, out, lse }), reference);
    out.data.fill(0);
    expectClose(await device.decode({ ...shared, out, lse }), reference);
  });

  test('results over an input are seen where two buffers are the same memory', async () => {
    const memory = new SharedArrayBuffer(200 * 32 * 4);
    const k = tensor(new Float32Array(memory), [1, 200, 1, 32]);
    const over = new Float32Array(structuredClone(memory), 100 * 32 * 4);
    const options = { q: tensor(new Float32Array(64), [1, 2, 32]), k, v: tensor(new Float32Array(6400), k.shape) };
    const mistakes = { out: tensor(over.subarray(0, 64), [1, 2, 32]), lse: tensor(over.subarray(0, 2), [1, 2]) };
    for (const name of ['out', 'lse'] as const) {
      const wrong = { ...options, [name]: mistakes[name] };
      const message = `Expected \`${name}\` to have memory of its own, got memory that \`k\` uses too`;
      expect(() => device.decodeSync(wrong)).toThrow(new RangeError(message));
      await expect(device.decode(wrong)).rejects.toThrow(new RangeError(message));
    }
  });

  test.each(['q', 'k', 'v', 'out', 'lse'] as const)(
    'a %s transferred away during a call makes it reject',
    async (name) => {
      const options = heavy();
      const { q } = options;
      const all = {
        ...options,
        out: tensor(new Float32Array(q.data.length), q.shape),
        lse: tensor(new Float32Array(q.data.length / 64), q.shape.slice(0, -1)),
      };
      const promise = device.decode(all);
      const moved = structuredClone(all[name].data.buffer, { transfer: [all[name].data.buffer as ArrayBuffer] });
      const error = await promise.then(
        () => undefined,
        (reason: unknown) => reason as InstanceType<typeof LeanAttentionError>,
      );
      expect(error).toBeInstanceOf(LeanAttentionError);
      expect(error?.code).toBe('BUFFER_DETACHED');
      expect(error?.message).toBe(
        `The buffer of \`${name}\` was transferred away while the call was using it; transfer buffers only after the promise has settled`,
      );
      expect((moved as ArrayBuffer).byteLength).toBeGreaterThan(0); // the memory lived on: `moved` held it
    },
  );
});

describe('the event loop', () => {
  test('stays free during a call', async () => {
    const options = heavy();
    let settled = false;
    let turns = 0;
    let files = 0;
    const turn = (): void => {
      if (settled) return;
      ++turns;
      setImmediate(turn);
    };
    const read = async (): Promise<void> => {
      while (!settled) {
        await readFile(fileURLToPath(import.meta.url));
        ++files;
      }
    };
    const calls = Promise.all(Array.from({ length: 6 }, () => device.decode({ ...options, workers: 2 })));
    turn();
    const reading = read();
    await calls;
    settled = true;
    await reading;
    expect(turns).toBeGreaterThan(3);
    expect(files).toBeGreaterThan(0); // more calls in flight than libuv has threads, and none of them taken
  });

  test('ends by itself with a device open and idle', async () => {
    await expectSuccess(`
      globalThis.device = openDevice('cpu', { threads: 4 });
      device.decodeSync(call(100));
      device.decode(call(100)).then((result) => console.log(right(result) ? 'done' : 'wrong'));`);
  });

  test('waits for a call in flight', async () => {
    await expectSuccess(
      `openDevice('cpu').decode(call(20000)).then((result) => console.log(right(result) ? 'done' : 'wrong'));`,
    );
  });

  test('process.exit with calls in flight is clean', async () => {
    await expectSuccess(`
      const device = openDevice('cpu', { threads: 2 });
      for (let i = 0; i < 20; ++i) device.decode(call(20000));
      process.stdout.write('done\\n', () => process.exit(0));`);
  });
});

describe('many calls', () => {
  test('at once, of different shapes', async () => {
    const problems = Array.from({ length: 12 }, (_, index) => {
      const c = { ...SMALL, contexts: [50 * index, 7, 300 - index], headDim: 8 * (1 + (index % 5)), seed: index };
      const options = build(c);
      return { options: { ...options, workers: 1 + index }, reference: referenceDecode(options) };
    });
    const calls = Array.from({ length: 300 }, (_, index) => problems[index % problems.length]);
    const results = await Promise.all(calls.map(({ options }) => device.decode(options)));
    for (const [index, result] of results.entries()) expectClose(result, calls[index].reference);
  });

  test('synchronous ones between asynchronous ones', async () => {
    const options = build(SMALL);
    const expected = device.decodeSync(options);
    const calls = Array.from({ length: 200 }, (_, index) =>
      index % 2 === 0 ? device.decode(options) : Promise.resolve(device.decodeSync(options)),
    );
    for (const result of await Promise.all(calls)) expectSameBits(result, expected);
  });

  test('10,000 of them leave memory flat', async () => {
    await expectSuccess(
      `(async () => {
        const device = openDevice('cpu', { threads: 2 }), alone = openDevice('cpu', { threads: 1 });
        const options = { ...call(130), workers: 3 };
        const shape = { numQueryHeads: 8, numKvHeads: 1, headDim: 64, kvType: 'f32', contextLengths: [130] };
        const plan = device.plan({ ...shape, workers: 3 });
        const many = async (count) => {
          for (let i = 0; i < count / 4; ++i) {
            device.decodeSync(options);
            plan.decodeSync(options);
            for (let j = 0; j < 48; ++j) alone.decodeSync(options);
            await Promise.all([device.decode(options), plan.decode(options)]);
            device.plan({ numQueryHeads: 8, numKvHeads: 1, headDim: 64, contextLengths: [130] });
          }
          gc();
          await new Promise(setImmediate);
          gc();
          return process.memoryUsage().rss;
        };
        await many(2000);
        const before = await many(2000);
        const after = await many(10000);
        const grown = (after - before) / 2 ** 20;
        console.log(grown < 24 ? 'done' : 'grown by ' + grown + ' MiB');
      })();`,
      50_000,
      ['--expose-gc'],
    );
  });

  test.runIf(process.platform === 'linux')('threads that the system refuses are an error that says so', async () => {
    const script = `const { openDevice } = require(${JSON.stringify(path.join(root, 'dist/index.js'))});
      try { openDevice('cpu', { threads: 1000 }); } catch ({ code, message }) { console.log(code, message); }
      console.log(openDevice('cpu', { threads: 1 }).type);`;
    // Each thread's stack takes address space, of which there is too little.
    const shell = spawn('sh', ['-c', 'ulimit -v 6000000; exec "$0" -e "$1"', process.execPath, script]);
    let output = '';
    for (const stream of [shell.stdout, shell.stderr]) stream.on('data', (data) => (output += data));
    await new Promise((resolve) => shell.on('close', resolve));
    expect(output).toMatch(
      /^OUT_OF_MEMORY The system refused a thread after \d+ of 1000 \(.+\): ask for fewer with `threads`\ncpu\n$/,
    );
  });

  test('devices opened and disposed leave no thread behind', async () => {
    await expectSuccess(`
      const { readdirSync } = require('node:fs');
      const threads = () => readdirSync('/proc/self/task').length;
      openDevice('cpu', { threads: 8 }).dispose();
      const before = threads();
      for (let i = 0; i < 100; ++i) openDevice('cpu', { threads: 8 }).dispose();
      console.log(threads() <= before ? 'done' : 'before ' + before + ', after ' + threads());`);
  });
});

describe('worker_threads', () => {
  let worker: string;
  beforeAll(() => {
    // Decodes for ever, synchronously and not, and reports each round.
    worker = JSON.stringify(`
      ${PRELUDE}
      const { parentPort, workerData } = require('node:worker_threads');
      (async () => {
        const device = openDevice('cpu', { threads: 2 });
        for (let round = 0; round < workerData.rounds; ++round) {
          const results = await Promise.all([device.decode(call(3000)), device.decode({ ...call(500), workers: 7 })]);
          results.push(device.decodeSync(call(100)));
          if (!results.every(right)) throw new Error('wrong result');
          parentPort.postMessage(round);
        }
      })();`);
  });

  test('several at once, and the main thread too', async () => {
    await expectSuccess(`
      const { Worker } = require('node:worker_threads');
      (async () => {
        const device = openDevice('cpu', { threads: 2 });
        const workers = Array.from({ length: 4 }, () => new Worker(${worker}, { eval: true, workerData: { rounds: 20 } }));
        const exits = workers.map((worker) => new Promise((resolve, reject) => worker.on('exit', resolve).on('error', reject)));
        for (let i = 0; i < 50; ++i) if (!right(await device.decode(call(1000)))) throw new Error('wrong result');
        const codes = await Promise.all(exits);
        console.log(codes.every((code) => code === 0) ? 'done' : codes);
      })();`);
  });

  test('terminated under load, again and again', async () => {
    await expectSuccess(`
      const { Worker } = require('node:worker_threads');
      (async () => {
        const device = openDevice('cpu', { threads: 2 });
        for (let round = 0; round < 25; ++round) {
          const workers = Array.from({ length: 2 }, () => new Worker(${worker}, { eval: true, workerData: { rounds: 1e9 } }));
          await Promise.all(workers.map((worker) => new Promise((resolve, reject) => worker.once('message', resolve).on('error', reject))));
          if (round % 3 === 0) await new Promise((resolve) => setTimeout(resolve, round));
          await Promise.all(workers.map((worker) => worker.terminate()));
          if (!right(await device.decode(call(1000)))) throw new Error('wrong result');
        }
        console.log('done');
      })();`);
  });

  test('terminated while they decode over a cache, again and again', async () => {
    await expectSuccess(`
      const { Worker } = require('node:worker_threads');
      const body = ${JSON.stringify(`
        ${PRELUDE}
        const { parentPort } = require('node:worker_threads');
        const device = openDevice('cpu', { threads: 2 });
        const rows = (count) => tensor(new Float32Array(count * 64).fill(1), [count, 1, 64]);
        (async () => {
          for (let round = 0; ; ++round) {
            const cache = device.createKvCache({ layers: 1, numKvHeads: 1, headDim: 64, tokens: 40000 });
            const sequences = [cache.createSequence(), cache.createSequence()];
            cache.append(sequences, [20000, 300]).write({ layer: 0, k: rows(20300), v: rows(20300) });
            const q = tensor(new Float32Array(2 * 8 * 64).fill(1), [2, 8, 64]);
            const calls = Array.from({ length: 10 }, () => device.decode({ q, cache, layer: 0, sequences }));
            if (round % 2 === 0) cache.dispose();
            parentPort.postMessage(round);
            for (const { out } of await Promise.all(calls)) if (Math.abs(out.data[0] - 1) > 1e-3) throw new Error('wrong result');
          }
        })();`)};
      (async () => {
        for (let round = 0; round < 12; ++round) {
          const worker = new Worker(body, { eval: true });
          await new Promise((resolve, reject) => worker.once('message', resolve).on('error', reject));
          if (round % 3 === 0) await new Promise((resolve) => setTimeout(resolve, 5 * round));
          await worker.terminate();
        }
        console.log('done');
      })();`);
  });

  test('terminated while the memory of its calls is shared with the main thread', async () => {
    await expectSuccess(`
      const { Worker } = require('node:worker_threads');
      const body = ${JSON.stringify(`
        ${PRELUDE}
        const { parentPort, workerData } = require('node:worker_threads');
        const device = openDevice('cpu', { threads: 2 });
        const t = (data, shape) => tensor(data, shape);
        for (let i = 0; i < 50; ++i) device.decode({ ...call(8), k: t(workerData.k, [1, 50000, 1, 64]), v: t(workerData.v, [1, 50000, 1, 64]) });
        parentPort.postMessage('started');`)};
      (async () => {
        const shared = () => new Float32Array(new SharedArrayBuffer(50000 * 64 * 4)).fill(1);
        const data = { k: shared(), v: shared() };
        for (let round = 0; round < 10; ++round) {
          const worker = new Worker(body, { eval: true, workerData: data });
          await new Promise((resolve, reject) => worker.once('message', resolve).on('error', reject));
          const code = await worker.terminate();
        }
        console.log('done');
      })();`);
  });
});

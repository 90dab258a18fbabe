// The CUDA device from Node, without a GPU: a second addon of the same binding, runtime and CUDA backend, over the rehearsed
// kernels and a CUDA runtime that fails when it is told to (test/rehearsal/addon).
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type * as Library from 'lean-attention';
import type { DecodeOptions, DecodeResult, Device } from 'lean-attention';
import { afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { build, type Case } from './helpers/cases';
import { expectClose, expectSameBits } from './helpers/compare';
import { referenceDecode } from './helpers/library';
import { buildRehearsal, rehearsalFolder } from './helpers/rehearsal-build';

interface Steering {
  /** 0 present, 1 missing, 2 too old, 3 without a device */
  driver?: 0 | 1 | 2 | 3;
  devices?: number;
  failAllocation?: number;
  failLaunch?: number;
  loseDevice?: number;
}

interface Alive {
  allocations: number;
  bytes: number;
  streams: number;
  events: number;
  launches: number;
}

const addonPath = path.join(rehearsalFolder, 'rehearsed_addon.node');
const root = fileURLToPath(new URL('..', import.meta.url));
const load = createRequire(import.meta.url);
let library: typeof Library;
let addon: { steerCuda(steering: Steering): void; cudaAlive(): Alive };

beforeAll(async () => {
  await buildRehearsal('rehearsed_addon');
  process.env.LEAN_ATTENTION_ADDON = addonPath;
  library = load('../dist/index.js');
  addon = load(addonPath);
}, 12 * 60_000);

let device: Device;
beforeEach(() => {
  addon.steerCuda({});
  device = library.openDevice('cuda');
});
afterEach(() => {
  addon.steerCuda({});
  device.dispose();
  const { allocations, bytes, streams, events } = addon.cudaAlive();
  expect({ allocations, bytes, streams, events }, 'nothing leaks').toEqual({
    allocations: 0,
    bytes: 0,
    streams: 0,
    events: 0,
  });
});

const SMALL: Case = {
  contexts: [130, 0, 77],
  queryLen: 1,
  numKvHeads: 2,
  groupSize: 4,
  headDim: 64,
  pageTokens: 0,
  layout: 'NHD',
  placement: 'plain',
  qType: 'f16',
  kvType: 'f16',
  seed: 1,
};

/** What a call throws: its class, code and message. */
async function failure(call: () => unknown): Promise<{ name: string; code?: string; message: string }> {
  try {
    await call();
  } catch (error) {
    const { name, code, message } = error as Error & { code?: string };
    return { name, message, ...(code === undefined ? {} : { code }) };
  }
  throw new Error('expected a failure');
}

/** Outputs that hold NaN, so that what nobody writes shows. */
function poisoned({ q }: DecodeOptions): DecodeResult {
  const rows = q.shape.slice(0, -1);
  const count = q.shape.reduce((a, b) => a * b);
  const data = q.dtype === 'f32' ? new Float32Array(count).fill(Number.NaN) : new Uint16Array(count).fill(0x7fff);
  return {
    out: library.tensor(data, q.shape, { dtype: q.dtype }),
    lse: library.tensor(new Float32Array(rows.reduce((a, b) => a * b)).fill(Number.NaN), rows),
  };
}

describe('decode on the CUDA device', () => {
  test.each<[string, Partial<Case>]>([
    ['contiguous f16', {}],
    ['bf16, head-major', { qType: 'bf16', kvType: 'bf16', layout: 'HND' }],
    ['pages of 16', { pageTokens: 16, contexts: [100, 33, 1] }],
    ['pages that are no multiple of the tile', { pageTokens: 7, contexts: [65] }],
    ['head dim 128, group of 7', { headDim: 128, groupSize: 7, contexts: [90, 15] }],
    ['head dim 40 in the instance of 64', { headDim: 40 }],
    ['several queries', { queryLen: 3, contexts: [70, 2] }],
    ['gaps between rows', { placement: 'gaps' }],
    ['queries in f32', { qType: 'f32' }],
    ['all contexts empty', { contexts: [0, 0] }],
  ])('%s', async (_, change) => {
    const c = { ...SMALL, ...change };
    const options = build(c);
    const expected = referenceDecode(options);
    for (const strategy of ['lean', 'fixed-split', 'flash-attention-2'] as const) {
      const result = device.decodeSync({ ...options, ...poisoned(options), strategy });
      // Queries in f32 are rounded to K's type on the way into the matrix instructions.
      if (c.qType !== 'f32') expectClose(result, expected);
      expectSameBits(await device.decode({ ...options, strategy }), result, 'asynchronous');
    }
  });

  test.each([1, 2, 3, 7, 64])('the CPU device agrees: %i workers', (workers) => {
    const options = build({ ...SMALL, contexts: [300, 0, 17, 129] });
    expectClose(device.decodeSync({ ...options, workers }), referenceDecode(options));
  });

  test('calls of many shapes on one workspace, at once', async () => {
    const cases = [
      SMALL,
      { ...SMALL, contexts: [200] },
      { ...SMALL, headDim: 128 },
      { ...SMALL, contexts: [1, 2, 3, 4] },
    ];
    const calls = [...cases, ...cases].map((c) => build(c));
    const results = await Promise.all(calls.map((options) => device.decode(options)));
    for (const [index, result] of results.entries()) expectClose(result, referenceDecode(calls[index]));
  });

  test('dispose during a call: it ends as if nothing had happened', async () => {
    const options = build(SMALL);
    const promise = device.decode(options);
    device.dispose();
    expectClose(await promise, referenceDecode(options));
  });

  test('what the kernels cannot do is said before anything runs', async () => {
    const { launches } = addon.cudaAlive();
    for (const call of [(o: DecodeOptions) => device.decodeSync(o), (o: DecodeOptions) => device.decode(o)]) {
      expect(await failure(() => call(build({ ...SMALL, qType: 'f32', kvType: 'f32' })))).toEqual({
        name: 'RangeError',
        message: 'The CUDA kernels read K and V in f16 or bf16',
      });
      expect((await failure(() => call(build({ ...SMALL, headDim: 512 })))).name).toBe('RangeError');
    }
    expect(addon.cudaAlive().launches).toBe(launches);
  });
});

describe('which device', () => {
  test("'auto' takes CUDA and says why; 'cpu' does not", () => {
    using auto = library.openDevice('auto');
    expect(auto.description).toBe('cuda:0 (3 multiprocessors, sm_90), taken because a CUDA device was found');
    using cpu = library.openDevice('cpu');
    expect(cpu.type).toBe('cpu');
  });

  test('a second device', () => {
    using second = library.openDevice('cuda:1');
    expect(second.name).toBe('cuda:1');
    const options = build(SMALL);
    expectClose(second.decodeSync(options), referenceDecode(options));
  });

  test('a device that is not there', async () => {
    expect(await failure(() => library.openDevice('cuda:2'))).toEqual({
      name: 'LeanAttentionError',
      code: 'CUDA_UNAVAILABLE',
      message: 'No CUDA device 2: this machine has 2',
    });
  });

  test.each<[string, 1 | 2 | 3, RegExp]>([
    ['no driver', 1, /^No CUDA device: no NVIDIA driver was found; install one/],
    ['a driver too old', 2, /supports CUDA 11\.4, this build needs 13\.0; update the driver/],
    ['no GPU', 3, /the NVIDIA driver found no GPU; see nvidia-smi/],
  ])('%s: never a silent fallback', async (_, driver, message) => {
    addon.steerCuda({ driver });
    const error = await failure(() => library.openDevice('cuda'));
    expect(error).toMatchObject({ name: 'LeanAttentionError', code: 'CUDA_UNAVAILABLE' });
    expect(error.message).toMatch(message);
    using auto = library.openDevice('auto');
    expect(auto.type).toBe('cpu');
    expect(auto.description).toContain('taken because no CUDA device can be used');
    expect(library.installation().cuda.available).toBe(false);
  });
});

describe('when it fails', () => {
  test('for want of memory, at every allocation of a call: the next call works', async () => {
    const options = build(SMALL);
    const expected = referenceDecode(options);
    let failures = 0;
    for (let n = 1; n < 40; ++n) {
      using fresh = library.openDevice('cuda');
      addon.steerCuda({ failAllocation: n });
      let error: Error & { code?: string } = new Error('none');
      try {
        fresh.decodeSync(options);
      } catch (thrown) {
        error = thrown as Error & { code?: string };
        ++failures;
        expect(error.code).toBe('OUT_OF_MEMORY');
        expect(error.message).toMatch(
          /^Not enough memory on the device: asked for \d+ [KM]iB, \d+ MiB of 1024 MiB are free$/,
        );
      }
      addon.steerCuda({});
      expectClose(fresh.decodeSync(options), expected);
      if (error.message === 'none') break;
    }
    expect(failures).toBeGreaterThan(5);
  });

  test('at the launch: the process lives, the next call works', async () => {
    const options = build(SMALL);
    addon.steerCuda({ failLaunch: 1 });
    expect(await failure(() => device.decode(options))).toMatchObject({
      name: 'LeanAttentionError',
      code: 'DEVICE_LOST',
    });
    expectClose(await device.decode(options), referenceDecode(options));
  });

  test('for good: every later call says so, and a device opened afterwards works where CUDA allows it', async () => {
    const options = build(SMALL);
    addon.steerCuda({ loseDevice: 1 });
    for (let call = 0; call < 3; ++call) {
      const error = await failure(() => (call === 1 ? device.decodeSync(options) : device.decode(options)));
      expect(error).toMatchObject({ code: 'DEVICE_LOST', message: expect.stringContaining('illegal memory access') });
    }
    addon.steerCuda({});
    using fresh = library.openDevice('cuda');
    expectClose(fresh.decodeSync(options), referenceDecode(options));
  });
});

test('it says that it holds no KV cache yet', async () => {
  const shape = { layers: 1, numKvHeads: 1, headDim: 64, tokens: 64 };
  expect(await failure(() => device.createKvCache(shape))).toMatchObject({
    name: 'LeanAttentionError',
    code: 'UNSUPPORTED',
    message: "The device cuda:0 cannot hold a KV cache yet: open 'cpu', or pass `k`, `v` and `pageTable`",
  });
  using host = library.openDevice('cpu', { threads: 1 });
  const cache = host.createKvCache(shape);
  const q = library.tensor(new Float32Array(64), [1, 1, 64]);
  expect(await failure(() => device.decode({ q, cache, layer: 0, sequences: [cache.createSequence()] }))).toMatchObject(
    { name: 'RangeError', message: expect.stringContaining('of the device that decodes') },
  );
  cache.dispose();
});

test('worker threads use it at once', () => {
  const script = `
    const { Worker, isMainThread } = require('node:worker_threads');
    const { openDevice, tensor } = require('lean-attention');
    const half = (shape) => tensor(new Uint16Array(shape.reduce((a, b) => a * b)).fill(0x3800), shape, { dtype: 'f16' });
    const device = openDevice('cuda');
    (async () => {
      if (isMainThread) new Worker(__filename), new Worker(__filename);
      for (let i = 0; i < 5; ++i) {
        const { out } = await device.decode({ q: half([1, 2, 64]), k: half([1, 100, 1, 64]), v: half([1, 100, 1, 64]) });
        if (!out.data.every((value) => value === 0x3800)) throw new Error('wrong result');
      }
      console.log('done');
    })();`;
  const wrapped = `require('node:fs').writeFileSync(process.argv[1], ${JSON.stringify(script)}); require(process.argv[1]);`;
  const file = path.join(rehearsalFolder, `workers-${process.pid}.cjs`);
  const env = { ...process.env, LEAN_ATTENTION_ADDON: addonPath };
  const { status, stdout, stderr } = spawnSync(process.execPath, ['-e', wrapped, file], {
    cwd: root,
    env,
    encoding: 'utf8',
  });
  expect({ status, stderr, done: stdout.split('\n').filter((line) => line === 'done').length }).toEqual({
    status: 0,
    stderr: '',
    done: 3,
  });
});

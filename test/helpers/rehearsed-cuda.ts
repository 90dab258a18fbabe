// The second addon (test/rehearsal/addon): the same binding, runtime and CUDA backend over the rehearsed kernels, and a
// CUDA runtime that fails when it is told to. Call useRehearsedCuda() at the top of a test file.
import { createRequire } from 'node:module';
import path from 'node:path';
import type * as Library from 'lean-attention';
import type { DecodeOptions, DecodeResult } from 'lean-attention';
import { afterEach, beforeAll, beforeEach, expect } from 'vitest';
import type { Case } from './cases';
import { buildRehearsal, rehearsalFolder } from './rehearsal-build';

export interface Steering {
  /** 0 present, 1 missing, 2 too old, 3 without a device */
  driver?: 0 | 1 | 2 | 3;
  devices?: number;
  /** Compute capability of the first device, 75 for 7.5; the others have 8.6. */
  capability?: number;
  /** Nothing is told of the device with this number. */
  unreadable?: number;
  /** The n-th allocation from now on fails, of the device's memory or of pinned memory. */
  failAllocation?: number;
  failPinned?: number;
  /** No kernel has been used yet when the next stream is made. */
  unloadKernels?: 1;
  failLaunch?: number;
  /** Making the next stream fails with this number of cudaError_t. */
  failStream?: number;
  loseDevice?: number;
}

export interface Alive {
  allocations: number;
  bytes: number;
  pinned: number;
  streams: number;
  events: number;
  graphs: number;
  launches: number;
  /** Copies from pinned memory that had been freed. */
  faults: number;
  /** How often a thread has waited for work that had not been done. */
  waits: number;
}

export interface RehearsedCuda {
  library: typeof Library;
  addon: { steerCuda(steering: Steering): void; cudaAlive(): Alive };
  device: Library.Device;
}

/** A case that is quickly rehearsed; one context is empty. */
export const SMALL: Case = {
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

export const addonPath = path.join(rehearsalFolder, 'rehearsed_addon.node');

/** Runs what the garbage collector has to finish: finalizers of native objects need a turn of the event loop. */
export async function collectGarbage(): Promise<void> {
  for (let round = 0; round < 3; ++round) {
    globalThis.gc?.();
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A device for each test of the file; afterwards nothing of the device is left. */
export function useRehearsedCuda(): RehearsedCuda {
  const load = createRequire(import.meta.url);
  const cuda = {} as RehearsedCuda;
  beforeAll(async () => {
    await buildRehearsal('rehearsed_addon');
    process.env.LEAN_ATTENTION_ADDON = addonPath;
    cuda.library = load('../../dist/index.js');
    cuda.addon = load(addonPath);
  }, 12 * 60_000);
  beforeEach(() => {
    cuda.addon.steerCuda({});
    cuda.device = cuda.library.openDevice('cuda');
  });
  afterEach(async () => {
    cuda.addon.steerCuda({});
    cuda.device.dispose();
    await collectGarbage();
    const { launches: _, waits: __, ...left } = cuda.addon.cudaAlive();
    expect(left, 'nothing leaks').toEqual({
      ...{ allocations: 0, bytes: 0, pinned: 0, streams: 0, events: 0, graphs: 0 },
      faults: 0,
    });
  });
  return cuda;
}

/** What a call throws: its class, code and message. */
export async function failure(call: () => unknown): Promise<{ name: string; code?: string; message: string }> {
  try {
    await call();
  } catch (error) {
    const { name, code, message } = error as Error & { code?: string };
    return { name, message, ...(code === undefined ? {} : { code }) };
  }
  throw new Error('expected a failure');
}

/** Outputs that hold NaN, so that what nobody writes shows. */
export function poisonedOutputs({ tensor }: typeof Library, { q }: DecodeOptions): DecodeResult {
  const rows = q.shape.slice(0, -1);
  const count = q.shape.reduce((a, b) => a * b);
  const data = q.dtype === 'f32' ? new Float32Array(count).fill(Number.NaN) : new Uint16Array(count).fill(0x7fff);
  return {
    out: tensor(data, q.shape, { dtype: q.dtype }),
    lse: tensor(new Float32Array(rows.reduce((a, b) => a * b)).fill(Number.NaN), rows),
  };
}

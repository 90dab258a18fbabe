// The CUDA device from Node, without a GPU: a second addon of the same binding, runtime and CUDA backend, over the rehearsed
// kernels and a CUDA runtime that fails when it is told to (test/rehearsal/addon).
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { CudaProblem, DecodeOptions, ErrorCode, LaunchOptions } from 'lean-attention';
import { describe, expect, test } from 'vitest';
import { build, type Case } from './helpers/cases';
import { inProcess } from './helpers/cli';
import { expectClose, expectSameBits } from './helpers/compare';
import { referenceDecode } from './helpers/library';
import { rehearsalFolder } from './helpers/rehearsal-build';
import { addonPath, collectGarbage, failure, poisonedOutputs, SMALL, useRehearsedCuda } from './helpers/rehearsed-cuda';

const root = fileURLToPath(new URL('..', import.meta.url));
const cuda = useRehearsedCuda();

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
      const result = cuda.device.decodeSync({ ...options, ...poisonedOutputs(cuda.library, options), strategy });
      // Queries in f32 are rounded to K's type on the way into the matrix instructions.
      if (c.qType !== 'f32') expectClose(result, expected);
      expectSameBits(await cuda.device.decode({ ...options, strategy }), result, 'asynchronous');
    }
  });

  test.each([1, 2, 3, 7, 64])('the CPU device agrees: %i workers', (workers) => {
    const options = build({ ...SMALL, contexts: [300, 0, 17, 129] });
    expectClose(cuda.device.decodeSync({ ...options, workers }), referenceDecode(options));
  });

  test.each<LaunchOptions>([
    { copies: 'async' },
    { copies: 'bulk' },
    { ctasPerSm: 1 },
    { copies: 'bulk', ctasPerSm: 1 },
    { stages: 2 },
    { stages: 6 },
    { copies: 'bulk', stages: 5 },
  ])('launched otherwise, the bits are the same: %o', (launch) => {
    const options = build({ ...SMALL, contexts: [300, 17], headDim: 128 });
    expectSameBits(
      cuda.device.decodeSync({ ...options, launch, workers: 3 }),
      cuda.device.decodeSync({ ...options, workers: 3 }),
    );
  });

  test.each<[LaunchOptions, number]>([
    [{ warps: 1 }, 16],
    [{ warps: 2, stages: 6 }, 32],
    [{ warps: 8, ctasPerSm: 1 }, 128],
    [{ warps: 8, tileTokens: 32, copies: 'bulk' }, 32],
    [{ tileTokens: 32 }, 32],
  ])('a plan for %o cuts tiles of %i tokens, as the kernel does', async (launch, tileTokens) => {
    const contextLengths = [300, 0, 129];
    const options = build({ ...SMALL, contexts: contextLengths, headDim: 128, groupSize: 5, queryLen: 2 });
    const { contextLengths: _, ...tensors } = options;
    const expected = referenceDecode(options);
    const shape = { numQueryHeads: 10, numKvHeads: 2, headDim: 128, queryLen: 2, contextLengths };
    for (const strategy of ['lean', 'fixed-split'] as const) {
      const plan = cuda.device.plan({ ...shape, strategy, launch });
      expect(plan.tileTokens).toBe(tileTokens);
      expect(plan.numTiles).toBe((Math.ceil(300 / tileTokens) + Math.ceil(129 / tileTokens)) * 2);
      const result = plan.decodeSync({ ...tensors, ...poisonedOutputs(cuda.library, options) });
      expectClose(result, expected);
      expectSameBits(await cuda.device.decode({ ...options, strategy, launch }), result, 'without a plan');
    }
  });

  test('more than 64 rows run with eight warps, and share one read of K and V', () => {
    const options = build({ ...SMALL, contexts: [150, 40], headDim: 128, numKvHeads: 1, groupSize: 16, queryLen: 8 });
    expectClose(cuda.device.decodeSync(options), referenceDecode(options));
    const plan = { numQueryHeads: 16, numKvHeads: 1, headDim: 128, contextLengths: [1000] };
    expect(cuda.device.plan({ ...plan, queryLen: 4 }).launch).toMatch(/ 2 stages, 4 warps, 2 CTAs .* 1 row blocks/);
    expect(cuda.device.plan({ ...plan, queryLen: 5 }).launch).toMatch(/ 4 stages, 8 warps, 1 CTAs .* 1 row blocks/);
    expect(cuda.device.plan({ ...plan, queryLen: 8 }).launch).toMatch(/ 4 stages, 8 warps, 1 CTAs .* 1 row blocks/);
    expect(cuda.device.plan({ ...plan, queryLen: 9 }).launch).toMatch(/ 4 stages, 8 warps, 1 CTAs .* 2 row blocks/);
  });

  test('a plan prints what it launches', () => {
    const options = { numQueryHeads: 8, numKvHeads: 2, headDim: 120, contextLengths: [1000] };
    const plan = cuda.device.plan(options);
    expect(plan.launch).toBe(
      'hopper: head dim 128, tiles of 64 tokens, 2 stages, 4 warps, 2 CTAs an SM, 6 workers, 1 row blocks, ' +
        '77824 bytes of shared memory, 69632 in flight an SM',
    );
    expect(String(plan)).toContain(plan.launch);
    expect(cuda.device.plan({ ...options, launch: { copies: 'bulk' } }).launch).toMatch(
      /^hopper, bulk copies: head dim 128/,
    );
    // One CTA may have what two would share.
    expect(cuda.device.plan({ ...options, launch: { ctasPerSm: 1 } }).launch).toMatch(
      /1 CTAs an SM, 3 workers, .* 116736 bytes of shared memory, 34816 in flight an SM$/,
    );
    // Another tile keeps the bytes in flight, where they fit.
    expect(cuda.device.plan({ ...options, launch: { warps: 2 } }).launch).toMatch(
      /^hopper: head dim 128, tiles of 32 tokens, 3 stages, 2 warps, 2 CTAs an SM, 6 workers, .* 69632 in flight an SM$/,
    );
  });

  test('lean cuts by cost, unless workers are forced', () => {
    const tilesOfWorkers = (contextLengths: number[], workers?: number) => {
      const shape = { numQueryHeads: 1, numKvHeads: 1, headDim: 64, contextLengths, ...(workers && { workers }) };
      const tiles: number[] = [];
      for (const { worker, tileBegin, tileEnd } of cuda.device.plan(shape).segments()) {
        tiles[worker] = (tiles[worker] ?? 0) + tileEnd - tileBegin;
      }
      return tiles;
    };
    // Six CTAs run at once. Of 32 tiles one of them has six, and with fewer somebody would have seven; of eight tiles two,
    // as with four.
    const equal = [64 * 16, 64 * 16];
    expect(tilesOfWorkers(equal)).toEqual(tilesOfWorkers(equal, 6));
    expect(tilesOfWorkers([64 * 8])).toEqual([2, 2, 2, 2]);
    expect(tilesOfWorkers([64 * 8], 6)).toHaveLength(6);
    // Sixty contexts of a tile, beside one of sixty tiles: an end counts as three tiles.
    const unequal = [...new Array<number>(60).fill(64), 64 * 60];
    expect(tilesOfWorkers(unequal, 6)).toEqual([20, 20, 20, 20, 20, 20]);
    const byCost = tilesOfWorkers(unequal);
    expect(byCost[0]).toBeLessThan(14);
    expect(byCost.at(-1)).toBeGreaterThan(40);
    expect(byCost.reduce((sum, tiles) => sum + tiles)).toBe(120);
  });

  test('KV heads are cut at the same places by workers of their own, unless workers are forced', () => {
    const cutsOfHeads = (numKvHeads: number, workers?: number) => {
      const shape = { numQueryHeads: numKvHeads, numKvHeads, headDim: 64, contextLengths: [64 * 7, 100, 64 * 9] };
      const cuts: string[][] = Array.from({ length: numKvHeads }, () => []);
      const heads = new Map<number, Set<number>>();
      const plan = cuda.device.plan({ ...shape, ...(workers && { workers }) });
      for (const { worker, sequence, kvHead, tileBegin, tileEnd, contributors } of plan.segments()) {
        cuts[kvHead]?.push(`${sequence}: ${tileBegin} to ${tileEnd} of ${contributors}`);
        heads.set(worker, (heads.get(worker) ?? new Set()).add(kvHead % 2));
      }
      return { cuts, workers: heads.size, alone: [...heads.values()].every((some) => some.size === 1) };
    };
    // Six CTAs run at once: three of them for each of two heads, or of two pairs of heads.
    const two = cutsOfHeads(2);
    expect(two).toMatchObject({ workers: 6, alone: true });
    expect(two.cuts[1]).toEqual(two.cuts[0]);
    const four = cutsOfHeads(4);
    expect(four).toMatchObject({ workers: 6, alone: true });
    expect(four.cuts[1]).toEqual(four.cuts[0]);
    expect(four.cuts[3]).toEqual(four.cuts[2]);
    const forced = cutsOfHeads(2, 4);
    expect(forced.cuts[1]).not.toEqual(forced.cuts[0]);
    expect(forced.alone).toBe(false);
  });

  test.each<[string, LaunchOptions, number, string]>([
    ['warps', { warps: 3 }, 128, 'Expected `launch.warps` to be 1, 2, 4 or 8 for head dim 128, got 3'],
    [
      'tiles larger than the warps',
      { warps: 2, tileTokens: 64 },
      128,
      'Expected `launch.tileTokens` to be 16 or 32 for head dim 128 with 2 warps, got 64',
    ],
    [
      'tiles that are no number of steps',
      { tileTokens: 40 },
      64,
      'Expected `launch.tileTokens` to be 16, 32 or 64 for head dim 64 with 4 warps, got 40',
    ],
    [
      'stages',
      { warps: 8, stages: 4 },
      128,
      'Expected `launch.stages` to be from 2 to 3 for head dim 128 with 8 warps and tiles of 128 tokens on this GPU, got 4',
    ],
    [
      'one stage',
      { stages: 1 },
      64,
      'Expected `launch.stages` to be from 2 to 6 for head dim 64 with 4 warps and tiles of 64 tokens on this GPU, got 1',
    ],
    [
      'CTAs',
      { stages: 3, ctasPerSm: 3 },
      128,
      'Expected `launch.ctasPerSm` to be from 1 to 2 for head dim 128 with 4 warps and 3 stages of 64 tokens on this GPU, got 3',
    ],
  ])('a launch that cannot be had is refused with what can: %s', async (_, launch, headDim, message) => {
    const { launches } = cuda.addon.cudaAlive();
    const options = build({ ...SMALL, headDim });
    expect(await failure(() => cuda.device.decode({ ...options, launch }))).toEqual({ name: 'RangeError', message });
    expect(() => cuda.device.plan({ numQueryHeads: 2, numKvHeads: 1, headDim, contextLengths: [9], launch })).toThrow(
      message,
    );
    expect(cuda.addon.cudaAlive().launches).toBe(launches);
  });

  test('calls of many shapes on one workspace, at once', async () => {
    const cases = [
      SMALL,
      { ...SMALL, contexts: [200] },
      { ...SMALL, headDim: 128 },
      { ...SMALL, contexts: [1, 2, 3, 4] },
    ];
    const calls = [...cases, ...cases].map((c) => build(c));
    const results = await Promise.all(calls.map((options) => cuda.device.decode(options)));
    for (const [index, result] of results.entries()) expectClose(result, referenceDecode(calls[index]));
  });

  test('waits once, for all that it copies', () => {
    const options = build({ ...SMALL, pageTokens: 16 });
    const before = cuda.addon.cudaAlive().waits;
    cuda.device.decodeSync(options);
    expect(cuda.addon.cudaAlive().waits - before).toBe(1);
  });

  test('dispose during a call: it ends as if nothing had happened', async () => {
    const options = build(SMALL);
    const promise = cuda.device.decode(options);
    cuda.device.dispose();
    expectClose(await promise, referenceDecode(options));
  });

  test('what the kernels cannot do is said before anything runs', async () => {
    const { launches } = cuda.addon.cudaAlive();
    for (const call of [(o: DecodeOptions) => cuda.device.decodeSync(o), (o: DecodeOptions) => cuda.device.decode(o)]) {
      expect(await failure(() => call(build({ ...SMALL, qType: 'f32', kvType: 'f32' })))).toEqual({
        name: 'RangeError',
        message: "Expected the dtype of K and V to be 'f16' or 'bf16' on a CUDA device, got 'f32'",
      });
      expect((await failure(() => call(build({ ...SMALL, headDim: 512 })))).name).toBe('RangeError');
    }
    expect(cuda.addon.cudaAlive().launches).toBe(launches);
  });
});

describe('which device', () => {
  test("'auto' takes CUDA and says why; 'cpu' does not", () => {
    using auto = cuda.library.openDevice('auto');
    expect(auto.description).toBe('cuda:0 (3 multiprocessors, sm_90), taken because a CUDA device was found');
    using cpu = cuda.library.openDevice('cpu');
    expect(cpu.type).toBe('cpu');
  });

  test('a second device, of another architecture', async () => {
    using second = cuda.library.openDevice('cuda:1');
    expect(second.description).toContain('cuda:1 (3 multiprocessors, sm_86)');
    for (const change of [{}, { headDim: 128 }, { groupSize: 20, queryLen: 5 }]) {
      const options = build({ ...SMALL, ...change });
      expectClose(second.decodeSync(options), referenceDecode(options));
    }
    const options = build({ ...SMALL, headDim: 128 });
    const plan = { numQueryHeads: 8, numKvHeads: 2, headDim: 128, contextLengths: [1000] };
    expect(second.plan(plan).launch).toBe(
      'compact: head dim 128, tiles of 64 tokens, 2 stages, 4 warps, 1 CTAs an SM, 3 workers, 1 row blocks, ' +
        '75216 bytes of shared memory, 34816 in flight an SM',
    );
    expect(await failure(() => second.decode({ ...options, launch: { warps: 8 } }))).toEqual({
      name: 'RangeError',
      message:
        "Expected a launch to fit two stages at least into a block's 101376 bytes of shared memory, " +
        'got head dim 128 with 8 warps and tiles of 128 tokens, of 69632 bytes a stage',
    });
    expect(await failure(() => second.decode({ ...options, launch: { copies: 'bulk' } }))).toMatchObject({
      code: 'CUDA_UNAVAILABLE',
      message: 'Bulk copies need a GPU of compute capability 9.0 or 10.x, and kernels that were built for it',
    });
  });

  test('a device that is not there', async () => {
    expect(await failure(() => cuda.library.openDevice('cuda:2'))).toEqual({
      name: 'LeanAttentionError',
      code: 'CUDA_UNAVAILABLE',
      message: 'No CUDA device 2: this machine has 2',
    });
  });

  test.each<[string, 1 | 2 | 3, CudaProblem, RegExp]>([
    ['no driver', 1, 'driver-missing', /^No CUDA device: no NVIDIA driver was found; install one/],
    ['a driver too old', 2, 'driver-too-old', /supports CUDA 11\.4, this build needs 13\.0; update the driver/],
    ['no GPU', 3, 'no-device', /the NVIDIA driver found no GPU; see nvidia-smi/],
  ])('%s: never a silent fallback', async (_, driver, reason, message) => {
    cuda.addon.steerCuda({ driver });
    const error = await failure(() => cuda.library.openDevice('cuda'));
    expect(error).toMatchObject({ name: 'LeanAttentionError', code: 'CUDA_UNAVAILABLE' });
    expect(error.message).toMatch(message);
    expect(() => cuda.library.openDevice('cuda')).toThrow(expect.objectContaining({ reason }));
    using auto = cuda.library.openDevice('auto');
    expect(auto.type).toBe('cpu');
    expect(auto.description).toContain('taken because no CUDA device can be used');
    expect(cuda.library.installation().cuda.available).toBe(false);
    const doctor = await inProcess(['doctor']);
    expect(doctor.exitCode).toBe(0);
    expect(doctor.out).toMatch(new RegExp(`✗ CUDA +${cuda.library.installation().cuda.reason}\n`));
  });
});

describe('a GPU that this build has no kernels for', () => {
  const why = "Rehearsed GPU has compute capability 7.5, the kernels need 8.0 or newer; use the device 'cpu'";

  test('is named, and never falls back', async () => {
    cuda.addon.steerCuda({ capability: 75 });
    expect(await failure(() => cuda.library.openDevice('cuda'))).toEqual({
      name: 'LeanAttentionError',
      code: 'CUDA_UNAVAILABLE',
      message: `CUDA device 0 cannot be used: ${why}`,
    });
    expect(() => cuda.library.openDevice('cuda')).toThrow(expect.objectContaining({ reason: 'no-kernels' }));
    cuda.addon.steerCuda({ capability: 69 });
    expect((await failure(() => cuda.library.openDevice('cuda'))).message).toContain('compute capability 6.9');
  });

  test("'auto' takes the next, or the CPU, and says why; doctor shows it", async () => {
    cuda.addon.steerCuda({ capability: 75 });
    using next = cuda.library.openDevice('auto');
    expect(next.description).toMatch(
      /^cuda:1 .*, taken because a CUDA device was found; not cuda:0: Rehearsed GPU has .* 7\.5,/,
    );
    expect(cuda.library.installation().cuda).toMatchObject({
      available: true,
      devices: [{ reason: why }, { reason: '' }],
    });
    const both = await inProcess(['doctor']);
    expect(both.exitCode).toBe(0);
    expect(both.out).toContain(`✗ cuda:0          ${why}`);
    expect(both.out).toContain('✓ cuda:1          Rehearsed GPU, compute capability 8.6, 1 GiB');
    expect(both.out).toContain('--device cuda:1 works; what is marked needs mending.');

    cuda.addon.steerCuda({ capability: 75, devices: 1 });
    using cpu = cuda.library.openDevice('auto');
    expect(cpu.type).toBe('cpu');
    expect(cpu.description).toContain(`taken because no CUDA device can be used: ${why}`);
    expect(cuda.library.installation().cuda).toMatchObject({ available: false, reason: why });
    expect((await inProcess(['doctor'])).out).toContain('--device cuda ends with exit code 3');
  });
});

describe('a device that does not answer', () => {
  const why = 'Reading the device failed: invalid device (rehearsed)';

  test('is passed by, and the others are as they were', async () => {
    cuda.addon.steerCuda({ unreadable: 1 });
    using first = cuda.library.openDevice('auto');
    expect(first.description).toContain('cuda:0 (');
    expect(await failure(() => cuda.library.openDevice('cuda:1'))).toMatchObject({
      code: 'CUDA_UNAVAILABLE',
      message: expect.stringMatching(`^CUDA device 1 cannot be used: ${why.replace(/[()]/g, '.')}`),
    });
    cuda.addon.steerCuda({ unreadable: 0 });
    using second = cuda.library.openDevice('auto');
    expect(second.description).toContain(`not cuda:0: ${why}`);
    expect(() => cuda.library.openDevice('cuda')).toThrow(expect.objectContaining({ reason: 'runtime' }));
    expect((await inProcess(['doctor'])).out).toContain(`✗ cuda:0          ${why}`);
    cuda.addon.steerCuda({ unreadable: 0, devices: 1 });
    using cpu = cuda.library.openDevice('auto');
    expect(cpu.description).toContain(`taken because no CUDA device can be used: ${why}`);
  });
});

describe('a device that does not open', () => {
  test.each<[number, ErrorCode, CudaProblem | undefined, string]>([
    [1, 'LAUNCH_FAILED', undefined, ''],
    [2, 'OUT_OF_MEMORY', undefined, '; the device or the host has too little memory left'],
    [46, 'CUDA_UNAVAILABLE', 'runtime', '; another process may have the GPU for itself'],
    [209, 'CUDA_UNAVAILABLE', 'no-kernels', '; build it for this GPU: node scripts/build.cjs'],
    [700, 'DEVICE_LOST', undefined, '; the device can be used again only by a new process'],
    [802, 'CUDA_UNAVAILABLE', 'runtime', '; on a machine with NVSwitch, nvidia-fabricmanager must run'],
  ])('with error %i of the runtime', (failStream, code, reason, advice) => {
    cuda.addon.steerCuda({ failStream });
    const message = expect.stringContaining(`Creating a stream failed: rehearsed${advice}`);
    expect(() => cuda.library.openDevice('cuda')).toThrow(expect.objectContaining({ code, reason, message }));
    cuda.addon.steerCuda({ failStream });
    using auto = cuda.library.openDevice('auto'); // the next one works
    expect(auto.description).toContain('cuda:1 (');
    expect(auto.description).toContain('; not cuda:0: Creating a stream failed: rehearsed');
    cuda.addon.steerCuda({ failStream, devices: 1 });
    using cpu = cuda.library.openDevice('auto');
    expect(cpu.description).toContain('no CUDA device can be used: cuda:0: Creating a stream failed: rehearsed');
  });
});

describe('when it fails', () => {
  test('for want of memory, at every allocation of a call: the next call works', async () => {
    const options = build(SMALL);
    const expected = referenceDecode(options);
    let failures = 0;
    for (let n = 1; n < 40; ++n) {
      using fresh = cuda.library.openDevice('cuda');
      cuda.addon.steerCuda({ failAllocation: n });
      let error: Error & { code?: string } = new Error('none');
      try {
        fresh.decodeSync(options);
      } catch (thrown) {
        error = thrown as Error & { code?: string };
        ++failures;
        expect(error.code).toBe('OUT_OF_MEMORY');
        expect(error.message).toMatch(
          /^Not enough (memory on the device: asked for \d+ [KM]iB, \d+ MiB of 1024 MiB are free|host memory can be pinned .*)$/,
        );
      }
      cuda.addon.steerCuda({});
      expectClose(fresh.decodeSync(options), expected);
      if (error.message === 'none') break;
    }
    expect(failures).toBeGreaterThan(5);
  });

  test('at the launch: the process lives, the next call works', async () => {
    const options = build(SMALL);
    cuda.addon.steerCuda({ failLaunch: 1 });
    expect(await failure(() => cuda.device.decode(options))).toMatchObject({
      name: 'LeanAttentionError',
      code: 'LAUNCH_FAILED',
    });
    expectClose(await cuda.device.decode(options), referenceDecode(options));
  });

  test('between copies and launch: what was being copied is kept until the copies are over', async () => {
    cuda.addon.steerCuda({ failLaunch: 1 });
    expect(await failure(() => cuda.device.decodeSync(build(SMALL)))).toMatchObject({ code: 'LAUNCH_FAILED' });
    cuda.device.dispose();
    await collectGarbage();
    expect(cuda.addon.cudaAlive()).toMatchObject({ pinned: 0, faults: 0 });
  });

  test('for good: every later call says so, and a device opened afterwards works where CUDA allows it', async () => {
    const options = build(SMALL);
    cuda.addon.steerCuda({ loseDevice: 1 });
    for (let call = 0; call < 3; ++call) {
      const error = await failure(() => (call === 1 ? cuda.device.decodeSync(options) : cuda.device.decode(options)));
      expect(error).toMatchObject({ code: 'DEVICE_LOST', message: expect.stringContaining('illegal memory access') });
    }
    cuda.addon.steerCuda({});
    using fresh = cuda.library.openDevice('cuda');
    expectClose(fresh.decodeSync(options), referenceDecode(options));
  });
});

test('worker threads use it at once, on streams of their own, another device too', () => {
  const script = `
    const { Worker, isMainThread } = require('node:worker_threads');
    const { openDevice, tensor } = require('lean-attention');
    const half = (shape) => tensor(new Uint16Array(shape.reduce((a, b) => a * b)).fill(0x3800), shape, { dtype: 'f16' });
    const device = openDevice(isMainThread ? 'cuda' : 'cuda:1');
    const stream = device.createStream();
    const [q, k, v] = [half([1, 2, 64]), half([1, 100, 1, 64]), half([1, 100, 1, 64])];
    const [out, lse] = [device.alloc(q.shape, { dtype: 'f16' }), device.alloc([1, 2])];
    const lengths = device.upload(Int32Array.of(100));
    const there = { q: device.upload(q), k: device.upload(k), v: device.upload(v), contextLengths: lengths, out, lse };
    (async () => {
      if (isMainThread) new Worker(__filename), new Worker(__filename);
      for (let i = 0; i < 5; ++i) {
        stream.upload(q, there.q);
        stream.decode(there);
        for (const result of [await stream.download(out), (await device.decode({ q, k, v })).out])
          if (!result.data.every((value) => value === 0x3800)) throw new Error('wrong result');
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

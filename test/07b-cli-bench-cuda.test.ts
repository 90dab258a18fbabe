// `lean-attention bench`, and `run`, on a CUDA device, over the rehearsed CUDA runtime: its reports and how they come about. Its clock
// says one millisecond to everything, so no time here means anything.

import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import { DevicePool, GraphTimer, inProcess, listTrials, measureOverhead, writeSafetensors } from './helpers/cli';
import { useRehearsedCuda } from './helpers/rehearsed-cuda';
import { contiguous, edited, I32, paged } from './helpers/small-files';
import { expectWellFormed } from './helpers/svg';

const cuda = useRehearsedCuda();

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lean-attention-bench-cuda-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const SMALL = ['--device', 'cuda', '--heads', '4/2', '--head-dim', '64', '--pool', '1m'];

describe('run', () => {
  it('takes the CPU by itself for what the kernels do not, and says so; on --device cuda it is refused', async () => {
    const [input, output] = [at('in.safetensors'), at('out.safetensors')];
    writeSafetensors(input, contiguous());
    const run = (...options: string[]) => inProcess(['run', input, '--out', output, '--json', ...options]);
    const refusal = "Expected the dtype of K and V to be 'f16' or 'bf16' on a CUDA device, got 'f32'.";
    expect(await run('--device', 'cuda')).toEqual({ exitCode: 2, out: '', err: `lean-attention: ${refusal}\n` });
    expect(existsSync(output)).toBe(false);
    const { exitCode, out, err } = await run();
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: `On the CPU, as cuda:0 refused: ${refusal}\n` });
    expect(JSON.parse(out)).toMatchObject({ device: 'cpu' });
    writeSafetensors(input, edited(paged(), I32('page_table', [2, 3], [4, 0, 5, 1, -7, 999])));
    expect((await run()).err).toMatch(/^lean-attention: Expected `page_table`[^\n]+\n$/);
    expect(existsSync(output)).toBe(true);
  });
});

describe('bench --device cuda', () => {
  it.each([
    ['equal contexts, in one piece', ['--context', '70', '--batch', '2'], 'GQA 4/2 d64 bf16 2 x 70', [70, 70]],
    [
      'unequal contexts, in pages',
      ['--ragged', '300,64,0,17'],
      'GQA 4/2 d64 bf16 4 ragged, up to 300',
      [300, 64, 0, 17],
    ],
  ])('reports as on the CPU: %s', async (_, shape, name, contextLengths) => {
    const [json, csv, svg] = [at('bench.json'), at('bench.csv'), at('bench.svg')];
    const argv = ['bench', ...SMALL, ...shape, '--dtype', 'f16,bf16', '--json', json, '--csv', csv, '--svg', svg];
    const { exitCode, out, err } = await inProcess(argv);
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
    expect(out).toContain('Rehearsed GPU, compute capability 9.0');
    expect(out).toContain(name);
    expect(out).toContain('a plain read of as many bytes on the same GPU');

    const report = JSON.parse(readFileSync(json, 'utf8'));
    expect(Object.keys(report)).toEqual(['schema', 'environment', 'roofline', 'rows']);
    expect(report.environment).toMatchObject({
      device: 'cuda:0 (3 multiprocessors, sm_90)',
      threads: 3,
      instructionSet: 'sm_90',
      lastLevelCacheBytes: 2 ** 20,
      poolBytes: 2 ** 20,
      check: 'every output against float64',
      gpu: { name: 'Rehearsed GPU', computeCapability: '9.0', memoryBytes: 2 ** 30 },
    });
    expect(report.environment.launches).toHaveLength(6);
    expect(report.environment.launches[5]).toMatch(new RegExp(`^${name}, flash-attention-2: hopper: head dim 64, `));
    expect(report.roofline.readGBps).toBeGreaterThan(0);
    expect(report.rows).toHaveLength(6);
    for (const row of report.rows) {
      expect(row).toMatchObject({ device: 'cuda:0', contextLengths, medianUs: 1000, fractionOfRoofline: 1 });
      expect(row.relativeError).toBeLessThanOrEqual(row.dtype === 'f16' ? 5e-4 : 3.5e-3);
      expect(row.samples).toBeGreaterThanOrEqual(9);
    }
    expect(readFileSync(csv, 'utf8').trimEnd().split('\n')).toHaveLength(7);
    const picture = readFileSync(svg, 'utf8');
    expectWellFormed(picture);
    expect(picture).toContain('Rehearsed GPU, 3 multiprocessors');
  });

  it('f32 is refused by a sentence that names what works', async () => {
    expect(await inProcess(['bench', ...SMALL, '--context', '64', '--dtype', 'f32'])).toEqual({
      exitCode: 2,
      out: '',
      err: 'lean-attention: Expected --dtype to be f16 or bf16 on cuda:0, which has no kernels for f32, got f32.\n',
    });
  });

  it('what the kernels or the memory cannot take is left out', async () => {
    const { exitCode, out, err } = await inProcess(['bench', ...SMALL, '--context', '64,4m', '--strategy', 'lean']);
    expect(exitCode).toBe(0);
    expect(err).toBe('Left out: GQA 4/2 d64 f16 4m takes 2 GiB, and 384 MiB can be used.\n');
    expect(out).toContain('GQA 4/2 d64 f16 64');
    const refused = await inProcess(['bench', '--device', 'cuda', '--context', '64', '--head-dim', '512']);
    expect(refused.exitCode).toBe(2);
    expect(refused.err).toContain(
      'Left out: GQA 32/8 d512 f16 64 cannot run on cuda:0: Expected headDim to be a multiple of 8 up to 256 on a CUDA device, got 512.',
    );
  });

  it('decodes are launched as --launch says, where it fits', async () => {
    const bench = (launch: string) =>
      inProcess([
        'bench',
        ...SMALL,
        '--context',
        '70',
        '--strategy',
        'lean',
        '--launch',
        launch,
        '--json',
        at('l.json'),
      ]);
    expect(await bench('copies=bulk,stages=3,warps=2')).toMatchObject({ exitCode: 0, err: '' });
    const { environment } = JSON.parse(readFileSync(at('l.json'), 'utf8'));
    expect(environment.launches).toEqual([
      expect.stringContaining('lean: hopper, bulk copies: head dim 64, tiles of 32 tokens, 3 stages, 2 warps, '),
    ]);
    const refused = await bench('warps=3');
    expect(refused.exitCode).toBe(2);
    expect(refused.err).toMatch(/^Left out: GQA 4\/2 d64 f16 70 cannot run on cuda:0: Expected `launch.warps` to be /);
    expect((await bench('stages=3,tile=64')).err).toBe(
      'lean-attention: Expected --launch to be a list of copies, tileTokens, stages, warps, ctasPerSm such as ' +
        'copies=bulk,stages=4, got "tile=64".\n',
    );
    expect((await bench('copies=fast')).err).toBe(
      'lean-attention: Expected --launch copies to be one of auto, async, bulk, got "fast".\n',
    );
    expect((await bench('stages=two')).err).toBe(
      'lean-attention: Expected --launch stages to be a whole number from 1 to 4096, got "two".\n',
    );
    expect(await inProcess(['bench', '--device', 'cpu', '--launch', 'stages=3'])).toEqual({
      exitCode: 2,
      out: '',
      err: 'lean-attention: Expected --launch only for a CUDA device, got it for the CPU.\n',
    });
  });

  it('a device that is lost ends with a sentence, and nothing is left behind', async () => {
    cuda.addon.steerCuda({ loseDevice: 9 });
    const { exitCode, err } = await inProcess(['bench', ...SMALL, '--context', '64']);
    expect(exitCode).toBe(1);
    expect(err).toMatch(/^lean-attention: The work on the device failed: .*\(DEVICE_LOST\)\n$/);
  });
});

describe('its parts', () => {
  it('enqueuing the work of a step leaves little garbage, and no more for a larger batch', async () => {
    const rows = await measureOverhead(cuda.device, { batches: [1, 8], warmUpBursts: 8, bursts: 7 });
    for (const call of ['stream.decode', 'stream.write', 'table.update']) {
      const [one, eight] = rows.filter((row) => row.call === call);
      expect([one, eight]).toMatchObject([
        { device: 'cuda:0', batch: 1, samples: 7 },
        { device: 'cuda:0', batch: 8, samples: 7 },
      ]);
      expect(one.heapBytesPerCall).toBeLessThan(8192);
      expect(eight.heapBytesPerCall).toBeLessThan(one.heapBytesPerCall + 1024);
    }
  });

  it('a sample holds as many pieces of work as fill it, each over a slot of its own', async () => {
    const stream = cuda.device.createStream();
    const flush = cuda.device.alloc([64]);
    const slots: number[] = [];
    const timer = await GraphTimer.make(
      stream,
      flush,
      10,
      (slot) => {
        slots.push(slot);
        stream.read(flush);
      },
      0.004,
    );
    expect(timer.pieces).toBe(4);
    expect(slots).toEqual([0, 0, 0, 1, 2, 3, 4, 5, 6, 7]);
    expect(await timer.time()).toBeCloseTo(0.001 / 4, 12);
    flush.dispose();
    stream.dispose();
  });

  it('the host knows what the pool holds, past the end of the block that repeats', async () => {
    const [trial] = listTrials('quick', ['bf16'], {
      heads: { numQueryHeads: 4, numKvHeads: 2 },
      headDim: 64,
      contexts: [9000],
    });
    const stream = cuda.device.createStream();
    const pool = new DevicePool(cuda.device, stream, 2 ** 23);
    pool.fill('f16');
    pool.fill('bf16');
    await stream.finish();
    const { k, v } = pool.slot(trial, 0);
    const tile = pool.hostTile(trial, 0, 1);
    for (const [there, here] of [
      [k, tile.k],
      [v, tile.v],
    ] as const) {
      const { data } = cuda.device.download(there);
      const ofHead = here.data.map((_, i) => data[(2 * Math.floor(i / 64) + 1) * 64 + (i % 64)]);
      expect(Buffer.compare(Buffer.from(here.data.buffer), Buffer.from(ofHead.buffer))).toBe(0);
    }
    expect(new Set(tile.v.data).size).toBeGreaterThan(1000);
    pool.dispose();
    stream.dispose();
  });
});

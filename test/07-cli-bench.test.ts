// `lean-attention bench`: what it reports, in every form, and that it would notice a wrong result.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import {
  benchChart,
  CpuEngine,
  chooseTiles,
  describeTrial,
  failedRows,
  formatCsv,
  formatJson,
  inProcess,
  kvBytes,
  listTrials,
  median,
  PRESETS,
  percentile,
  prepareCheck,
} from './helpers/cli';
import { installation, openDevice, tensor } from './helpers/library';
import { expectWellFormed } from './helpers/svg';

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lean-attention-bench-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const ROW_KEYS = [
  ...['strategy', 'device', 'dtype', 'batch', 'queryLen', 'numQueryHeads', 'numKvHeads', 'headDim', 'contextLengths'],
  ...['medianUs', 'p10Us', 'p90Us', 'samples', 'kvBytes', 'gbps', 'fractionOfRoofline', 'speedupVsFlashAttention2'],
  'relativeError',
];

describe('bench', () => {
  it('measures, checks, and reports in every form', async () => {
    const [json, csv, svg] = [at('bench.json'), at('bench.csv'), at('bench.svg')];
    const shape = ['--heads', '4/2', '--head-dim', '64', '--ragged', '600,64,0,17', '--dtype', 'f32,bf16'];
    const argv = ['bench', '--device', 'cpu', ...shape, '--json', json, '--csv', csv, '--svg', svg];
    const { exitCode, out, err } = await inProcess(argv, true);
    expect(exitCode, err).toBe(0);
    expect(err).toMatch(/█|░/);
    expect(err.endsWith('\r\x1b[2K')).toBe(true);
    expect(out).toContain('GQA 4/2 d64 bf16 4 ragged, up to 600');

    const report = JSON.parse(readFileSync(json, 'utf8'));
    expect(Object.keys(report)).toEqual(['schema', 'environment', 'roofline', 'rows']);
    expect(report.schema).toBe(1);
    expect(Object.keys(report.roofline)).toEqual(['readGBps']);
    expect(report.roofline.readGBps).toBeGreaterThan(0);
    expect(report.environment).toMatchObject({ node: process.version, check: 'every output against float64' });
    expect(report.rows).toHaveLength(6);
    for (const row of report.rows) {
      expect(Object.keys(row)).toEqual(ROW_KEYS);
      expect(row).toMatchObject({ device: 'cpu', batch: 4, queryLen: 1, numQueryHeads: 4, numKvHeads: 2, headDim: 64 });
      expect(row.contextLengths).toEqual([600, 64, 0, 17]);
      expect(row.kvBytes).toBe(2 * 681 * 2 * 64 * (row.dtype === 'f32' ? 4 : 2));
      expect(row.p10Us).toBeLessThanOrEqual(row.medianUs);
      expect(row.medianUs).toBeLessThanOrEqual(row.p90Us);
      expect(row.gbps).toBeCloseTo(row.kvBytes / row.medianUs / 1e3, 1);
      expect(row.fractionOfRoofline).toBeGreaterThan(0);
      expect(row.relativeError).toBeLessThanOrEqual(row.dtype === 'f32' ? 1e-5 : 3.5e-3);
      expect(row.samples).toBeGreaterThanOrEqual(9);
      if (row.strategy === 'flash-attention-2') expect(row.speedupVsFlashAttention2).toBe(1);
    }
    const lines = readFileSync(csv, 'utf8').trimEnd().split('\n');
    expect(lines[0]).toBe(ROW_KEYS.join(','));
    expect(lines).toHaveLength(7);
    for (const line of lines) expect(line.split(',')).toHaveLength(ROW_KEYS.length);
    expectWellFormed(readFileSync(svg, 'utf8'));
  });

  it('without flash-attention-2 there is no speed-up over it; no terminal, no progress', async () => {
    const argv = [
      'bench',
      '--device',
      'cpu',
      '--heads',
      '2/1',
      '--head-dim',
      '8',
      '--context',
      '40',
      '--strategy',
      'lean',
    ];
    const { exitCode, out, err } = await inProcess([...argv, '--json', at('lean.json')]);
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
    expect(out).toContain('MQA 2/1 d8 f16 40');
    expect(JSON.parse(readFileSync(at('lean.json'), 'utf8')).rows).toMatchObject([{ speedupVsFlashAttention2: null }]);
  });

  it.skipIf(installation().cuda.available)('a device that is not there: exit code 3', async () => {
    const { exitCode, out, err } = await inProcess(['bench', '--device', 'cuda:3', '--context', '64']);
    expect({ exitCode, out }).toEqual({ exitCode: 3, out: '' });
    expect(err).toContain('--device cpu works without it.');
  });

  it('overhead: what a call costs, for batches of unequal size', async () => {
    const { exitCode, out, err } = await inProcess([
      ...['bench', '--preset', 'overhead', '--device', 'cpu'],
      ...['--json', at('overhead.json')],
    ]);
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
    expect(out).toContain('device.decodeSync');
    const { schema, environment, overhead } = JSON.parse(readFileSync(at('overhead.json'), 'utf8'));
    expect(schema).toBe(1);
    expect(environment).toMatchObject({ node: process.version, instructionSet: expect.any(String) });
    const named = (call: string) => overhead.filter((row: { call: string }) => row.call === call);
    for (const call of ['device.decodeSync', 'step.write']) {
      expect(named(call).map(({ batch }: { batch: number }) => batch)).toEqual([1, 8, 64, 256]);
    }
    for (const row of overhead) {
      expect(row.device).toBe('cpu');
      expect(row.medianUs).toBeGreaterThan(0);
      expect(row.p10Us).toBeLessThanOrEqual(row.p90Us);
      expect(row.heapBytesPerCall).toBeLessThan(16384);
    }
    const refused = await inProcess(['bench', '--preset', 'overhead', '--context', '64']);
    expect(refused).toEqual({
      exitCode: 2,
      out: '',
      err: 'lean-attention: Expected --preset overhead without --context, got both.\n',
    });
  });

  it.each([
    [64, 4096, 8],
    [16, 65536, 8],
    [4, 262144, 8],
    [9, 262144, 4],
  ])('checks every head where not all output tiles can be: %d x %d tokens, %d heads', (batch, context, heads) => {
    const tiles = chooseTiles(new Array(batch).fill(context), heads, 1024);
    expect(tiles.length).toBeLessThan(batch * heads);
    expect(new Set(tiles.map(({ sequence, kvHead }) => `${sequence} ${kvHead}`)).size).toBe(tiles.length);
    const times = Array.from({ length: heads }, (_, head) => tiles.filter(({ kvHead }) => kvHead === head).length);
    expect(Math.max(...times) - Math.min(...times)).toBeLessThanOrEqual(2);
  });

  it('checks each strategy on its own: rows that one leaves unwritten are no number', async () => {
    const device = openDevice('cpu');
    const lazy: typeof device = Object.create(device, {
      decodeSync: {
        value: (options: Parameters<typeof device.decodeSync>[0]) =>
          options.strategy === 'fixed-split' ? { out: options.out, lse: options.lse } : device.decodeSync(options),
      },
    });
    const [trial] = listTrials('quick', ['bf16'], { contexts: [64] });
    const prepared = await new CpuEngine(lazy, [trial], 2 ** 20).prepare(trial);
    expect(await prepared.relativeError('lean')).toBeLessThan(3.5e-3);
    expect(await prepared.relativeError('fixed-split')).toBeNaN();
    device.dispose();
  });

  it('JSON on short lines keeps its strings', () => {
    const value = { a: '[ x ]', b: '{ y', c: ['} z', '\n [ ', { d: [] }], e: '] " {' };
    expect(JSON.parse(formatJson(value))).toEqual(value);
    expect(formatJson({ shape: [1, 2], in: { x: 1 } })).toBe('{\n  "shape": [1, 2],\n  "in": {"x": 1}\n}\n');
  });

  it('an error past the bound, or NaN, fails the run by a sentence', () => {
    const [trial] = listTrials('quick', ['f16'], { contexts: [64] });
    const row = { strategy: 'lean', relativeError: 4e-4, fractionOfRoofline: 1, medianUs: 1, kvBytes: 1 } as never;
    const withError = (relativeError: number) => [
      {
        trial,
        rows: [{ ...(row as object), relativeError } as never],
        plans: [],
        reads: [1],
        outputTiles: 8,
        checkedTiles: 8,
      },
    ];
    expect(failedRows(withError(5e-4))).toEqual([]);
    expect(failedRows(withError(6e-4)).map(({ sentence }) => sentence)).toEqual([
      'Expected a relative error of at most 0.0005 from lean at GQA 32/8 d128 f16 64, got 6.0e-4.',
    ]);
    expect(failedRows(withError(Number.NaN))).toHaveLength(1);
  });

  it('its check notices one wrong number, contiguous and paged', () => {
    const device = openDevice('cpu');
    for (const pageTable of [undefined, Int32Array.of(2, 0, 1, -1)]) {
      const [blocks, tokens] = pageTable === undefined ? [2, 24] : [3, 12];
      const data = (size: number): Float32Array => Float32Array.from({ length: size }, (_, i) => Math.cos(i));
      const options = {
        q: tensor(data(2 * 4 * 16), [2, 4, 16]),
        k: tensor(data(blocks * tokens * 2 * 16), [blocks, tokens, 2, 16]),
        v: tensor(data(blocks * tokens * 2 * 16), [blocks, tokens, 2, 16]),
        contextLengths: [20, 11],
        ...(pageTable && { pageTable }),
      };
      const check = prepareCheck(options);
      expect(check).toMatchObject({ numTiles: 4, numChecked: 4 });
      const { out } = device.decodeSync(options);
      expect(check.relativeError(out)).toBeLessThan(1e-5);
      out.data[17] += 0.01;
      expect(check.relativeError(out)).toBeGreaterThan(1e-4);
    }
    device.dispose();
  });

  it('presets: quick holds the shapes that count, options replace their part', () => {
    const quick = listTrials('quick', ['f16'], {});
    expect(quick.filter((trial) => kvBytes(trial) >= 64e6).length).toBeGreaterThanOrEqual(3);
    expect(quick.some(({ paged }) => paged)).toBe(true);
    expect(
      listTrials('quick', ['f16', 'f32'], { heads: { numQueryHeads: 8, numKvHeads: 1 }, contexts: [64] }),
    ).toMatchObject([
      { dtype: 'f16', numQueryHeads: 8, contextLengths: [64], paged: false },
      { dtype: 'f32', numQueryHeads: 8, contextLengths: [64], paged: false },
    ]);
    expect(listTrials('llama3-8b', ['f16'], { ragged: [5, 6] })).toMatchObject([
      { contextLengths: [5, 6], paged: true },
    ]);
    const ragged = listTrials('ragged', ['f16'], {});
    expect(ragged).toHaveLength(18);
    expect(ragged.map(describeTrial)).toEqual(
      expect.arrayContaining([
        'MQA 8/1 d128 f16 64 x 512',
        'GQA 32/8 d128 f16 64k, 31 x 4k',
        'MQA 8/1 d128 f16 16k, 15 x 64',
      ]),
    );
    expect(ragged.filter(({ paged }) => !paged)).toHaveLength(4);
    const paper = listTrials('paper', ['f16'], {});
    expect(new Set(paper.map(({ headDim }) => headDim))).toEqual(new Set([64, 128]));
    expect(Math.max(...paper.flatMap(({ contextLengths }) => contextLengths))).toBe(512 * 1024);
    expect(Math.max(...paper.map(({ contextLengths }) => contextLengths.length))).toBe(16);
    for (const name of Object.keys(PRESETS)) expect(listTrials(name, ['f16'], {}).length).toBeGreaterThan(2);
  });

  it('statistics', () => {
    expect(median([3, 1, 2])).toBe(2);
    expect(median([4, 1, 2, 3])).toBe(2.5);
    expect(percentile([0, 10], 10)).toBe(1);
    expect(median([])).toBeNaN();
    expect(formatCsv({ rows: [] } as never)).toBe('');
    expectWellFormed(
      benchChart({
        environment: { cpu: 'A & B <"\'>', threads: 2, instructionSet: 'avx2' },
        roofline: { readGBps: 1 },
        rows: [],
      } as never),
    );
  });
});

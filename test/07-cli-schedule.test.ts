// `lean-attention schedule`: text, JSON and pictures of how a batch is cut.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { Strategy } from 'lean-attention';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import { inProcess } from './helpers/cli';
import { expectWellFormed } from './helpers/svg';

const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lean-attention-schedule-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface ScheduleJson {
  workers: number;
  tileTokens: number;
  numTiles: number;
  strategies: {
    strategy: Strategy;
    splits: number;
    makespan: number;
    makespanOverIdeal: number;
    segments: {
      processor: number;
      start: number;
      sequence: number;
      kvHead: number;
      tileBegin: number;
      tileEnd: number;
    }[];
  }[];
}

describe('schedule', () => {
  it('as text: a row a worker, and a table of all strategies', async () => {
    const { exitCode, out, err } = await inProcess([
      'schedule',
      '--context',
      '8k,512',
      '--heads',
      '8/2',
      '--workers',
      '4',
    ]);
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
    for (const strategy of STRATEGIES)
      expect(out).toMatch(new RegExp(`${strategy}: makespan \\d+ tiles, \\d\\.\\d\\d x the ideal\n 0 │`));
    expect(out).toMatch(/lean +\d+ tiles +1\.0\d x/);
    expect(out.split('\n').filter((line) => line.includes('│'))).toHaveLength(12);
    for (const line of out.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
  });

  it('shows some of many workers', async () => {
    const { out } = await inProcess(['schedule', '--context', '64x4k', '--strategy', 'lean']);
    expect(out).toContain('Of 132 workers, one in 9 is shown.');
  });

  it('as JSON: every tile once, on a processor that is free', async () => {
    const argv = [
      'schedule',
      '--context',
      '4k,0,1000,3x77',
      '--heads',
      '6/3',
      '--workers',
      '5',
      '--splits',
      '4',
      '--json',
    ];
    const { exitCode, out } = await inProcess(argv);
    expect(exitCode).toBe(0);
    const report = JSON.parse(out) as ScheduleJson;
    expect(report.strategies.map(({ strategy }) => strategy)).toEqual(STRATEGIES);
    expect(report.strategies[1].splits).toBe(4);
    for (const { segments, makespan, makespanOverIdeal } of report.strategies) {
      const busy = new Array<number>(report.workers).fill(0);
      const tiles = new Set<string>();
      for (const { processor, start, sequence, kvHead, tileBegin, tileEnd } of segments) {
        expect(start).toBe(busy[processor]);
        busy[processor] += tileEnd - tileBegin;
        for (let tile = tileBegin; tile < tileEnd; ++tile) tiles.add(`${sequence} ${kvHead} ${tile}`);
      }
      expect(tiles.size).toBe(report.numTiles);
      expect(busy.reduce((sum, value) => sum + value)).toBe(report.numTiles);
      expect(Math.max(...busy)).toBe(makespan);
      expect(makespanOverIdeal).toBeGreaterThanOrEqual(1);
    }
  });

  it.each([
    ['--context', '64k,24k,12k,6k', '--heads', '8/2', '--workers', '16'],
    ['--context', '64x2k', '--workers', '132'],
    ['--context', '0', '--workers', '1', '--strategy', 'lean'],
    ['--context', '9x1k', '--workers', '2000'],
  ])('as a picture: %s %s %s %s', async (...argv) => {
    expect(await inProcess(['schedule', ...argv, '--svg', at('schedule.svg')])).toMatchObject({ exitCode: 0, err: '' });
    expectWellFormed(readFileSync(at('schedule.svg'), 'utf8'));
  });

  it.each([
    ['5x64', '1/1', '4', '63 %'],
    ['64', '1/1', '132', '1 %'],
    ['4x64', '1/1', '4', '100 %'],
  ])('says how busy workers are: %s, %s heads, %s workers', async (context, heads, workers, share) => {
    const argv = ['schedule', '--context', context, '--heads', heads, '--workers', workers, '--strategy', 'lean'];
    const { out } = await inProcess([...argv, '--svg', at('busy.svg')]);
    expect(out).toMatch(new RegExp(`\\nlean .* x +${share} `));
    expect(readFileSync(at('busy.svg'), 'utf8')).toContain(`workers busy ${share} `);
  });

  it('refuses what nobody could read', async () => {
    const { exitCode, err } = await inProcess(['schedule', '--context', '60000x64', '--heads', '32/8', '--json']);
    expect(exitCode).toBe(2);
    expect(err).toMatch(
      /^lean-attention: Expected --context, --heads and --workers to give at most 200000 segments, got up to \d+\.\n$/,
    );
  });
});

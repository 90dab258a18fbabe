// The CUDA kernels, executed without a GPU: their unchanged source runs on the rehearsal machine (test/rehearsal/README.md).
import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, describe, expect, test } from 'vitest';
import { buildRehearsal } from './helpers/rehearsal-build';
import { type Attempt, buildDir, control, plantedBugs, tryBug } from './rehearsal/planted.mjs';

const minutes = (n: number): number => n * 60_000;

const execute = promisify(execFile);
/** A program's output; a failing exit code is for its reader to find in the text. */
async function run(program: string, ...args: string[]): Promise<string> {
  const options = { maxBuffer: 1 << 26, env: { ...process.env, ASAN_OPTIONS: 'detect_leaks=0' } };
  try {
    return (await execute(path.join(buildDir, program), args, options)).stdout;
  } catch (error) {
    const { stdout, stderr } = error as { stdout?: string; stderr?: string };
    return `${stdout ?? ''}\n${stderr ?? String(error)}`;
  }
}

/** Two at a time, because the suite has two cores. */
async function inPairs<T, R>(items: readonly T[], work: (item: T) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) {
      const index = next++;
      results[index] = await work(items[index]);
    }
  };
  await Promise.all([worker(), worker()]);
  return results;
}

const failures = (report: string): string[] =>
  report.split('\n').filter((line) => /FAIL|ERROR|runtime error/.test(line));
const summary = (report: string): RegExpMatchArray | null => report.match(/^(\d+) cases, .*?(\d+) failed/m);

const BUILDS = ['fast', 'race', 'sanitize'] as const;

const TARGETS = [...BUILDS.flatMap((build) => [`rehearse_${build}`, `selftest_${build}`]), 'agree_with_cpu'];

// The watched builds take every so many cases; the whole grid is the fast build's.
const THINNED = { race: 7, sanitize: 9 };

const SETS = [
  'every axis',
  'group sizes',
  'query lengths',
  'rows that share a read',
  'launch choices',
  'several row blocks',
  'page sizes',
  'numbers of workers',
  'long contexts',
  'cuts by cost',
  'heads together',
  'cuts that move',
  'two-level fix-up',
  'rising scores',
  'corrupt tables and lengths',
  'large batches',
];

beforeAll(() => buildRehearsal(...TARGETS), minutes(12));

describe('the machine finds what its own small kernels do wrong', () => {
  test.each(BUILDS)('%s build', { timeout: minutes(2) }, async (build) => {
    const report = await run(`selftest_${build}`);
    expect(failures(report)).toEqual([]);
    expect(report.match(/^ok /gm)?.length).toBeGreaterThan(35);
  });
});

describe('the decode grid', () => {
  let whole = '';
  let reports: string[] = [];
  beforeAll(async () => {
    reports = await inPairs(['0/4', '1/4', '2/4', '3/4'], (shard) => run('rehearse_fast', '--shard', shard));
    whole = reports.join('\n');
  }, minutes(10));

  test.each(SETS)('%s', (set) => {
    const lines = [...whole.matchAll(/^set (.*): (\d+) cases, (\d+) failed$/gm)].filter(([, name]) => name === set);
    expect(lines.reduce((sum, [, , cases]) => sum + Number(cases), 0)).toBeGreaterThan(0);
    expect(
      lines.reduce((sum, [, , , failed]) => sum + Number(failed), 0),
      failures(whole).join('\n'),
    ).toBe(0);
  });

  test('comes to its end, and holds no other set', () => {
    expect(failures(whole)).toEqual([]);
    for (const report of reports) expect(summary(report)?.[2]).toBe('0');
    expect(new Set([...whole.matchAll(/^set (.*?):/gm)].map(([, name]) => name))).toEqual(new Set(SETS));
  });

  test.each(['race', 'sanitize'] as const)('thinned, in the %s build', { timeout: minutes(5) }, async (build) => {
    const report = await run(`rehearse_${build}`, '--every', String(THINNED[build]));
    expect(failures(report)).toEqual([]);
    expect(summary(report)?.[2]).toBe('0');
    expect(Number(summary(report)?.[1])).toBeGreaterThan(30);
  });

  test('agrees with the CPU backend: the same cuts, the same results', { timeout: minutes(2) }, async () => {
    const report = await run('agree_with_cpu');
    expect(failures(report)).toEqual([]);
    expect(summary(report)?.[2]).toBe('0');
  });
});

describe('planted bugs are found', () => {
  const controls: (string | null)[] = [];
  const outcomes: Attempt[] = [];
  beforeAll(async () => {
    // One list, so that no core waits for the slowest control.
    const tries = [
      ...BUILDS.map((build, index) => async () => {
        controls[index] = await control(build, 11);
      }),
      ...plantedBugs.map((bug, index) => async () => {
        outcomes[index] = await tryBug(bug);
      }),
    ];
    await inPairs(tries, (attempt) => attempt());
  }, minutes(10));

  test.each(BUILDS.map((build, index) => [build, index] as const))(
    'and nothing where none is: %s build',
    (_, index) => {
      expect(controls[index]).toBeNull();
    },
  );

  test.each(plantedBugs.map((bug, index) => [bug.name, index] as const))('%s', (_, index) => {
    expect(outcomes[index].found, outcomes[index].text).toBe(true);
  });
});

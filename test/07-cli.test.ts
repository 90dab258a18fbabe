// The command line as a whole: help, version, exit codes, every option that cannot be used, and `doctor`. What the commands
// do is tested in process; a few runs are processes of their own, as the shell sees them.

import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import { asProcess, inProcess, mainFile, PRESET_NAMES, writeSafetensors } from './helpers/cli';
import { installation } from './helpers/library';
import { contiguous } from './helpers/small-files';

const root = join(import.meta.dirname, '..');
let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lean-attention-cli-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describe('the command itself', () => {
  const version = (JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { version: string }).version;

  it('--version, --help, and help for each command', async () => {
    expect(await inProcess(['--version'])).toEqual({ exitCode: 0, out: `${version}\n`, err: '' });
    for (const words of [['--help'], ['-h'], ['help']]) {
      const { exitCode, out } = await inProcess(words);
      expect(exitCode).toBe(0);
      for (const name of ['run', 'bench', 'schedule', 'doctor', 'Exit codes']) expect(out).toContain(name);
    }
    for (const name of ['run', 'bench', 'schedule', 'doctor']) {
      const help = await inProcess([name, '--help']);
      expect(help).toMatchObject({ exitCode: 0, err: '' });
      expect(help.out).toMatch(
        new RegExp(`^Usage: lean-attention ${name}.*Examples:\n {2}lean-attention ${name}`, 's'),
      );
      expect((await inProcess(['help', name])).out).toBe(help.out);
      for (const line of help.out.split('\n')) expect(line.length).toBeLessThanOrEqual(120);
    }
  });

  it('no command shows the overview; an unknown one gets a hint', async () => {
    expect(await inProcess([])).toMatchObject({ exitCode: 2, out: '' });
    expect(await inProcess(['rnu'])).toEqual({
      exitCode: 2,
      out: '',
      err: 'lean-attention: Unknown command "rnu", did you mean `run`?\n',
    });
    expect((await inProcess(['frobnicate'])).err).toBe(
      'lean-attention: Unknown command "frobnicate", expected one of run, bench, schedule, doctor.\n',
    );
  });

  it('works as a process: exit codes, and a reader that leaves early', () => {
    expect(asProcess(['--version'])).toEqual({ exitCode: 0, out: `${version}\n`, err: '' });
    expect(asProcess(['nope']).exitCode).toBe(2);
    const script = `"${process.execPath}" "${mainFile}" schedule --context 64x4k --json | head -n 1`;
    const piped = spawnSync('bash', ['-o', 'pipefail', '-c', script], { encoding: 'utf8' });
    expect(piped).toMatchObject({ status: 0, stdout: '{\n', stderr: '' });
  });

  it.skipIf(!existsSync('/dev/full'))('says so when stdout cannot be written', () => {
    const full = spawnSync('sh', ['-c', `"${process.execPath}" "${mainFile}" schedule --context 4k > /dev/full`], {
      encoding: 'utf8',
    });
    const stderr = 'lean-attention: Expected stdout to be writable, got: no space left on device.\n';
    expect(full).toMatchObject({ status: 1, stderr });
  });
});

describe('options that cannot be used end with exit code 2 and a sentence', () => {
  const cases: [argv: string, sentence: string][] = [
    ['run', 'Expected the argument INPUT.safetensors for `run`, got none.'],
    ['run a b --out c', 'Expected the argument INPUT.safetensors for `run`, got "a" "b".'],
    ['run a', 'Expected --out FILE, where the result goes, got none.'],
    ['run a --out', 'Expected a value after --out (FILE), got nothing.'],
    ['run a --out --json', 'Expected a value after --out (FILE), got "--json".'],
    ['run a --out=', 'Expected a value after --out (FILE), got "".'],
    ['run a --out b --out c', 'Expected --out once, got it twice.'],
    ['run a --out b --json=yes', 'Expected --json without a value, got "yes".'],
    ['run a --out b --worker 2', 'Unknown option --worker for `run`, did you mean --workers?'],
    ['run a --out b --frobnicate', 'Unknown option --frobnicate for `run`; see `lean-attention run --help`.'],
    ['run a --out b -x', 'Unknown option -x for `run`; see `lean-attention run --help`.'],
    ['run a --out b --workers 0', 'Expected --workers to be a whole number from 1 to 1048576, got "0".'],
    ['run a --out b --workers -3', 'Expected --workers to be a whole number from 1 to 1048576, got "-3".'],
    ['run a --out b --workers 1.5', 'Expected --workers to be a whole number from 1 to 1048576, got "1.5".'],
    ['run a --out b --workers 9999999', 'Expected --workers to be a whole number from 1 to 1048576, got "9999999".'],
    [
      'run a --out b --strategy fast',
      'Expected --strategy to be one of lean, fixed-split, flash-attention-2, got "fast".',
    ],
    ['run a --out b --splits 2', 'Expected --splits together with --strategy fixed-split, got --strategy lean.'],
    [
      'run a --out b --strategy fixed-split --splits many',
      'Expected --splits to be a whole number from 1 to 1048576, got "many".',
    ],
    ['run a --out b --device gpu', 'Expected --device to be auto, cpu, cuda or cuda:N, got "gpu".'],
    ['run a --out b --device cuda:x', 'Expected --device to be auto, cpu, cuda or cuda:N, got "cuda:x".'],
    ['schedule', 'Expected --context LIST, the tokens of each sequence, got none.'],
    ['schedule a', 'Expected no argument besides options for `schedule`, got "a".'],
    ['schedule --context 4q', 'Expected --context to be numbers of tokens such as 512, 4k or 1m, got "4q".'],
    ['schedule --context 1,,2', 'Expected --context to be a comma-separated list, got "1,,2".'],
    ['schedule --context 0x4k', 'Expected --context\'s repeat count to be a whole number from 1 to 65536, got "0".'],
    ['schedule --context 60000x1,60000x1', 'Expected --context to give at most 65536 sequences, got more.'],
    ['schedule --context 5000m', 'Expected --context to be numbers of tokens such as 512, 4k or 1m, got "5000m".'],
    [
      'schedule --context 4k --heads 32/7',
      'Expected --heads to be query heads / KV heads with the first a multiple of the second, such as 32/8, got "32/7".',
    ],
    ['schedule --context 4k --head-dim 12', 'Expected --head-dim to be a multiple of 8 from 8 to 512, got "12".'],
    ['schedule --context 4k --workers x', 'Expected --workers to be a whole number from 1 to 1048576, got "x".'],
    [
      'schedule --context 4k --strategy lean --splits 2',
      'Expected --splits together with --strategy fixed-split, got --strategy lean.',
    ],
    [
      'schedule --context 4k --svg /no/such/a.svg',
      'Expected "/no/such/a.svg" to be writable, got: no such file or directory.',
    ],
    ['schedule --context 4k --svg /tmp', 'Expected "/tmp" to be writable, got: a directory.'],
    ['schedule --context 4k --svg /dev/null/x', 'Expected "/dev/null/x" to be writable, got: not a directory.'],
    [
      'schedule --context 65536x1 --heads 4096 --strategy flash-attention-2',
      'Expected sequences x KV heads x splits to make at most 16777216 workers, got 268435456 x 1.',
    ],
    [
      'schedule --context 65536x1 --heads 4096 --strategy lean',
      'Expected --context, --heads and --workers to give at most 200000 segments, got up to 268435588.',
    ],
    ['bench --preset slow', `Expected --preset to be one of ${PRESET_NAMES.join(', ')}, got "slow".`],
    ['bench --preset toString', `Expected --preset to be one of ${PRESET_NAMES.join(', ')}, got "toString".`],
    ['bench --dtype f64', 'Expected --dtype to be one of f32, f16, bf16, got "f64".'],
    ['bench --batch 0', 'Expected --batch to be a whole number from 1 to 4096, got "0".'],
    ['bench --context 1k,0', 'Expected --context to be numbers above 0, got 0.'],
    ['bench --ragged 0,0', 'Expected --ragged to hold a context above 0, got only 0.'],
    ['bench --ragged 1k,2k --context 1k', 'Expected --ragged without --batch and --context, got --context too.'],
    ['bench --json /no/such/a.json', 'Expected "/no/such/a.json" to be writable, got: no such file or directory.'],
    ['bench --batch 4096 --context 1024m', 'Expected at least one shape that fits into memory, got none.'],
    ['doctor --jsn', 'Unknown option --jsn for `doctor`, did you mean --json?'],
  ];
  it.each(cases)('%s', async (argv, sentence) => {
    const { exitCode, out, err } = await inProcess(argv.split(' '));
    expect({
      exitCode,
      out,
      err: err
        .split('\n')
        .filter((line) => !line.startsWith('Left out'))
        .join('\n'),
    }).toEqual({
      exitCode: 2,
      out: '',
      err: `lean-attention: ${sentence}\n`,
    });
  });
});

describe('doctor', () => {
  it('says what was found, as text and as JSON', async () => {
    const text = await inProcess(['doctor']);
    expect(text).toMatchObject({ exitCode: 0, err: '' });
    expect(text.out).toMatch(
      /✓ lean-attention .*\n✓ addon .*lean_attention\.node\n.*\n✓ CPU .*\n.*usable here: .*portable/,
    );
    const json = await inProcess(['doctor', '--json']);
    expect(JSON.parse(json.out)).toMatchObject({ ok: true, node: process.version, cuda: installation().cuda });
  });

  it('names the driver where there is one', () => {
    const commands = at('commands');
    mkdirSync(commands);
    writeFileSync(join(commands, 'nvidia-smi'), '#!/bin/sh\necho 580.95.05\n', { mode: 0o755 });
    const env = { ...process.env, PATH: `${commands}:${process.env.PATH}` };
    const doctor = (...options: string[]): string =>
      execFileSync(process.execPath, [mainFile, 'doctor', ...options], { encoding: 'utf8', env });
    const found = existsSync('/proc/driver/nvidia/version') ? /\d+\.\d+/ : /580\.95\.05/;
    expect(doctor()).toMatch(new RegExp(`\n✓ NVIDIA driver +${found.source}`));
    expect(JSON.parse(doctor('--json')).driver).toMatch(found);
  });

  it('outside of any package: what to do, at once', () => {
    const alone = mkdtempSync(join(tmpdir(), 'lean-attention-bundled-'));
    cpSync(join(root, 'dist'), join(alone, 'dist'), { recursive: true });
    const doctor = asProcess(['doctor'], join(alone, 'dist', 'cli', 'main.js'));
    rmSync(alone, { recursive: true });
    expect(doctor).toMatchObject({ exitCode: 3, err: '' });
    expect(doctor.out).toMatch(/^Expected lean-attention in its package's folder, got it in .*mark it external/);
  });

  it('an addon that does not load: the help page, exit code 3, and commands that need none still work', () => {
    // A copy of the package without its addon.
    const copy = at('without-addon');
    cpSync(join(root, 'dist'), join(copy, 'dist'), { recursive: true });
    cpSync(join(root, 'package.json'), join(copy, 'package.json'));
    const main = join(copy, 'dist', 'cli', 'main.js');
    const doctor = asProcess(['doctor'], main);
    expect(doctor).toMatchObject({ exitCode: 3, err: '' });
    expect(doctor.out).toMatch(/did not load\.\n +Found: .*\n +Required: .*\n +To mend: .*build\.cjs\n +Reason: /);
    expect(JSON.parse(asProcess(['doctor', '--json'], main).out)).toMatchObject({ ok: false });
    writeSafetensors(at('in.safetensors'), contiguous());
    const run = asProcess(['run', at('in.safetensors'), '--out', at('never')], main);
    expect(run).toMatchObject({ exitCode: 3, out: '' });
    expect(run.err).toMatch(/^lean-attention: The native addon of lean-attention did not load\./);
    expect(asProcess(['--help'], main).exitCode).toBe(0);
    expect(asProcess(['--version'], main).exitCode).toBe(0);
  });
});

// `lean-attention run`: each way a file can be wrong has its sentence and leaves no output; each shared case, cut in every
// way, is within the bounds.

import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import type { DecodeResult, Device, Strategy } from 'lean-attention';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';

import type { TensorToWrite } from '../dist/cli/safetensors';
import {
  asProcess,
  decodeOptionsOf,
  inProcess,
  type Outcome,
  openInput,
  runDecode,
  SafetensorsFile,
  writeSafetensors,
} from './helpers/cli';
import { expectClose } from './helpers/compare';
import { installation, openDevice, referenceDecode, tensor } from './helpers/library';
import { contiguous, edited, F16, F32, I32, paged } from './helpers/small-files';

const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'lean-attention-run-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function runOn(
  tensors: TensorToWrite[],
  options: string[] = [],
  metadata: Record<string, string> = {},
): Promise<Outcome & { output: string }> {
  const [input, output] = [at('in.safetensors'), at('out.safetensors')];
  rmSync(output, { force: true });
  writeSafetensors(input, tensors, metadata);
  const outcome = await inProcess(['run', input, '--out', output, ...options]);
  return { ...outcome, output };
}

describe('run: files that cannot be used end with exit code 2, a sentence and no output', () => {
  const spoiled: [title: string, tensors: TensorToWrite[], sentence: string][] = [
    ['no q', edited(contiguous(), { drop: 'q' }), 'Expected a tensor `q`, got only "k", "v", "context_lengths".'],
    ['no tensors', [], 'Expected a tensor `q`, got none.'],
    ['no v', edited(contiguous(), { drop: 'v' }), 'Expected a tensor `v`, got only "q", "k", "context_lengths".'],
    [
      'q of integers',
      edited(contiguous(), I32('q', [1, 2, 8], new Array(16).fill(1))),
      'Expected `q` to have dtype F32, F16 or BF16, got I32.',
    ],
    [
      'q of two axes',
      edited(contiguous(), F32('q', [4, 16])),
      'Expected `q` to have 3 or 4 dimensions, got shape [4, 16].',
    ],
    [
      'k of three axes',
      edited(contiguous(), F32('k', [10, 2, 16])),
      'Expected `k` to have 4 dimensions, got shape [10, 2, 16].',
    ],
    [
      'another head dim',
      edited(contiguous(), F32('k', [2, 10, 2, 24])),
      'Expected `k` shape[3] to equal headDim 16, got 24.',
    ],
    [
      'another batch',
      edited(contiguous(), F32('k', [3, 10, 2, 16]), F32('v', [3, 10, 2, 16])),
      'Expected `k` shape[0] to equal batch 2, got 3; pass `page_table` for a paged cache.',
    ],
    [
      'v unlike k',
      edited(contiguous(), F32('v', [2, 9, 2, 16])),
      'Expected `v` shape to equal that of `k` [2, 10, 2, 16], got [2, 9, 2, 16].',
    ],
    [
      'v of another type',
      edited(contiguous(), F16('v', [2, 10, 2, 16])),
      "Expected `v` dtype to equal that of `k` 'f32', got 'f16'.",
    ],
    [
      'heads that do not divide',
      edited(contiguous(), F32('q', [2, 3, 16])),
      'Expected `q` shape[1], numQueryHeads, to be a multiple of numKvHeads 2, got 3.',
    ],
    [
      'head dim 20',
      [F32('q', [1, 1, 20]), F32('k', [1, 1, 1, 20]), F32('v', [1, 1, 1, 20])],
      'Expected `q` shape[2], headDim, to be a multiple of 8, got 20.',
    ],
    [
      'no sequences',
      [F32('q', [0, 1, 8]), F32('k', [0, 1, 1, 8]), F32('v', [0, 1, 1, 8])],
      'Expected `q` shape[0], batch, to be at least 1, got 0.',
    ],
    [
      'lengths of floats',
      edited(contiguous(), F32('context_lengths', [2])),
      'Expected `context_lengths` to have dtype I32, got F32.',
    ],
    [
      'lengths of two axes',
      edited(contiguous(), I32('context_lengths', [2, 1], [1, 1])),
      'Expected `context_lengths` to have 1 dimension, got shape [2, 1].',
    ],
    [
      'too few lengths',
      edited(contiguous(), I32('context_lengths', [1], [1])),
      "Expected `context_lengths` shape[0] to equal q's batch 2, got 1.",
    ],
    [
      'a length past the capacity',
      edited(contiguous(), I32('context_lengths', [2], [3, 11])),
      'Expected `context_lengths`[1] from 0 to the capacity 10, got 11.',
    ],
    [
      'a negative length',
      edited(contiguous(), I32('context_lengths', [2], [-1, 1])),
      'Expected `context_lengths`[0] from 0 to the capacity 10, got -1.',
    ],
    [
      'a page table of floats',
      edited(paged(), F32('page_table', [2, 3])),
      'Expected `page_table` to have dtype I32, got F32.',
    ],
    [
      'a page table of one axis',
      edited(paged(), I32('page_table', [6], [0, 0, 0, 0, 0, 0])),
      'Expected `page_table` to have 2 dimensions, got shape [6].',
    ],
    [
      'a page table of another batch',
      edited(paged(), I32('page_table', [3, 1], [0, 1, 2])),
      "Expected `page_table` shape[0] to equal q's batch 2, got 3.",
    ],
    [
      'a page that is not there',
      edited(paged(), I32('page_table', [2, 3], [4, 0, 5, 1, 0, 0])),
      'Expected `page_table`[0][2] from 0 to 4, got 5.',
    ],
    [
      'a negative page',
      edited(paged(), I32('page_table', [2, 3], [-1, 0, 2, 1, 0, 0])),
      'Expected `page_table`[0][0] from 0 to 4, got -1.',
    ],
    [
      'a length past the pages',
      edited(paged(), I32('context_lengths', [2], [13, 4])),
      'Expected `context_lengths`[0] from 0 to the capacity 12, got 13.',
    ],
    [
      'a batch that takes no bytes',
      [F32('q', [2 ** 52, 0, 8]), F32('k', [2 ** 52, 0, 0, 8]), F32('v', [2 ** 52, 0, 0, 8])],
      'Expected `q` shape[0], batch, to be at most 2147483647, got 4503599627370496.',
    ],
    [
      'a cache that takes no bytes',
      [F32('q', [2 ** 30, 0, 8]), F32('k', [2 ** 30, 4, 0, 8]), F32('v', [2 ** 30, 4, 0, 8])],
      'Expected `k` shape[2], numKvHeads, to be at least 1, got 0.',
    ],
    [
      'sinks',
      edited(contiguous(), F32('sinks', [4])),
      'Expected no tensor `sinks`, because attention sinks are not supported yet, got one.',
    ],
  ];
  it.each(spoiled)('%s', async (_title, tensors, sentence) => {
    const { exitCode, out, err, output } = await runOn(tensors);
    expect({ exitCode, out, err }).toEqual({ exitCode: 2, out: '', err: `lean-attention: ${sentence}\n` });
    expect(existsSync(output)).toBe(false);
  });

  const metadata: [metadata: Record<string, string>, sentence: string][] = [
    [{ layout: 'DHN' }, 'Expected metadata `layout` to be NHD or HND, got "DHN".'],
    [{ scale: 'big' }, 'Expected metadata `scale` to be a number, got "big".'],
    [{ scale: '1e999' }, 'Expected metadata `scale` to be a number, got "1e999".'],
    [{ scale: '' }, 'Expected metadata `scale` to be a number, got "".'],
    [{ softcap: '30.0' }, 'Expected metadata `softcap` to be 0 (off), because it is not supported yet, got 30.'],
    [{ window: '128' }, 'Expected metadata `window` to be 0 (off), because it is not supported yet, got 128.'],
    [{ window: 'all' }, 'Expected metadata `window` to be a number, got "all".'],
  ];
  it.each(metadata)('metadata %o', async (entries, sentence) => {
    const { exitCode, out, err, output } = await runOn(contiguous(), [], entries);
    expect({ exitCode, out, err }).toEqual({ exitCode: 2, out: '', err: `lean-attention: ${sentence}\n` });
    expect(existsSync(output)).toBe(false);
  });

  it('files that are none, or cannot be written', async () => {
    const input = at('in.safetensors');
    writeSafetensors(input, contiguous());
    const sentence = async (...argv: string[]): Promise<string> => {
      const { exitCode, err } = await inProcess(['run', ...argv]);
      expect(exitCode).toBe(2);
      return err.replaceAll(folder, '…').replace('lean-attention: ', '').trimEnd();
    };
    expect(await sentence(at('no'), '--out', at('x'))).toBe(
      'Expected "…/no" to be readable, got: no such file or directory.',
    );
    expect(await sentence(folder, '--out', at('x'))).toBe('Expected "…" to be a file, got a directory.');
    expect(await sentence('/dev/zero', '--out', at('x'))).toBe(
      'Expected "/dev/zero" to be a file, got a device or a pipe.',
    );
    execFileSync('mkfifo', [at('pipe')]);
    expect(await sentence(at('pipe'), '--out', at('x'))).toBe(
      'Expected "…/pipe" to be a file, got a device or a pipe.',
    );
    expect(await sentence(input, '--out', input)).toBe(
      'Expected --out to be another file than the input, got "…/in.safetensors".',
    );
    expect(await sentence(input, '--out', folder)).toBe(
      'Expected --out "…" to be a file or a new name, got a directory.',
    );
    expect(await sentence(input, '--out', '/dev/null')).toBe(
      'Expected --out "/dev/null" to be a file or a new name, got a device or a pipe.',
    );
    expect(await sentence(input, '--out', at('no/such'))).toBe(
      'Expected "…/no/such" to be writable, got: no such file or directory.',
    );
    writeFileSync(at('text'), 'not a tensor in here');
    expect(await sentence(input, '--out', at('text/x'))).toBe(
      'Expected "…/text/x" to be writable, got: not a directory.',
    );
    const strange = { name: 'red\n\x1b[31m', dtype: 'F32', shape: [1], data: Float32Array.of(1) } as const;
    writeSafetensors(at('strange'), [strange]);
    expect(await sentence(at('strange'), '--out', at('x'))).toBe(
      'Expected a tensor `q`, got only "red\\n\\u001b[31m".',
    );
    expect(await sentence(at('text'), '--out', at('x'))).toMatch(
      /^"…\/text" is not a usable safetensors file: expected a header of at most 12 bytes in a file of 20, got \d+\.$/,
    );
    expect(readdirSync(folder).filter((name) => name === 'x' || name.endsWith('.tmp'))).toEqual([]);
  });

  it('a failed run leaves an earlier output as it was', async () => {
    writeSafetensors(at('in.safetensors'), edited(contiguous(), { drop: 'q' }));
    writeFileSync(at('earlier'), 'kept');
    expect((await inProcess(['run', at('in.safetensors'), '--out', at('earlier')])).exitCode).toBe(2);
    expect(readFileSync(at('earlier'), 'utf8')).toBe('kept');
  });
});

describe('run: results', () => {
  it('tells of the plan that was run, heads apart included', async () => {
    const heads = [F16('q', [1, 32, 128]), F16('k', [1, 8, 1025, 128]), F16('v', [1, 8, 1025, 128])];
    const { exitCode, out } = await runOn(heads, ['--json', '--device', 'cpu'], { layout: 'HND' });
    expect(exitCode).toBe(0);
    const device = openDevice('cpu');
    const shape = { numQueryHeads: 32, numKvHeads: 8, headDim: 128, contextLengths: [1025] };
    const { makespanOverIdeal, workspaceBytes } = device.plan({ ...shape, layout: 'HND' });
    expect(JSON.parse(out)).toMatchObject({ contextLengths: [1025], makespanOverIdeal, workspaceBytes });
    expect(device.plan(shape).workspaceBytes).not.toBe(workspaceBytes); // a token's heads side by side are cut together
    device.dispose();
  });

  it('writes out and lse, and says what was run', async () => {
    const { exitCode, err, out, output } = await runOn(paged(), ['--json', '--workers', '3', '--device', 'cpu'], {
      softcap: '0',
      window: '0.0',
      format: 'pt',
      scale: '0.5',
    });
    expect({ exitCode, err }).toEqual({ exitCode: 0, err: '' });
    const file = SafetensorsFile.open(output);
    expect([...file.tensors.values()].map(({ name, dtype, shape }) => [name, dtype, shape])).toEqual([
      ['out', 'F32', [2, 1, 4, 16]],
      ['lse', 'F32', [2, 1, 4]],
    ]);
    file.close();
    const report = JSON.parse(out);
    expect(report).toMatchObject({
      device: 'cpu',
      strategy: 'lean',
      workers: 3,
      splits: 1,
      dtype: { q: 'f32', kv: 'f32' },
      layout: 'NHD',
      pageTokens: 4,
      shapes: { q: [2, 1, 4, 16], k: [5, 4, 2, 16], v: [5, 4, 2, 16], out: [2, 1, 4, 16], lse: [2, 1, 4] },
      contextLengths: [11, 4],
    });
    expect(report.timeUs).toBeGreaterThan(0);
    expect(report.makespanOverIdeal).toBeGreaterThanOrEqual(1);
  });

  it('takes --splits, a three-dimensional q, the whole capacity by default, and other types of q and K/V', async () => {
    const tensors = edited(contiguous(), { drop: 'context_lengths' }, F16('q', [2, 4, 16]));
    const { exitCode, out, output } = await runOn(tensors, ['--json', '--strategy', 'fixed-split', '--splits', '2']);
    expect(exitCode).toBe(0);
    expect(JSON.parse(out)).toMatchObject({
      strategy: 'fixed-split',
      splits: 2,
      contextLengths: [10, 10],
      queryLen: 1,
    });
    const file = SafetensorsFile.open(output);
    expect(file.tensors.get('out')).toMatchObject({ dtype: 'F16', shape: [2, 4, 16] });
    expect(file.tensors.get('lse')).toMatchObject({ dtype: 'F32', shape: [2, 4] });
    file.close();
  });

  it('a context of nothing gives 0 and -infinity', async () => {
    const { exitCode, out, output } = await runOn(edited(contiguous(), I32('context_lengths', [2], [0, 0])));
    expect(exitCode).toBe(0);
    expect(out).toContain('2 sequences (2 x 0 tokens), heads 4/2, head dim 16, f32 K/V (NHD)');
    const file = SafetensorsFile.open(output);
    const [values, lse] = ['out', 'lse'].map((name) => {
      const entry = file.tensors.get(name);
      if (entry === undefined) throw new Error(`no ${name}`);
      return new Float32Array(file.read(entry));
    });
    file.close();
    expect(values.every((value) => value === 0)).toBe(true);
    expect(lse.every((value) => value === Number.NEGATIVE_INFINITY)).toBe(true);
  });

  it('works as a process, and refuses as one', () => {
    writeSafetensors(at('in.safetensors'), contiguous());
    const done = asProcess(['run', at('in.safetensors'), '--out', at('process.safetensors'), '--device', 'cpu']);
    expect(done).toMatchObject({ exitCode: 0, err: '' });
    expect(done.out).toMatch(
      /^2 sequences \(10, 3 tokens\), .* on cpu with lean, .*; wrote .*process\.safetensors\.\n$/,
    );
    writeSafetensors(at('in.safetensors'), edited(contiguous(), F32('k', [2, 10, 2, 24])));
    expect(asProcess(['run', at('in.safetensors'), '--out', at('never')])).toEqual({
      exitCode: 2,
      out: '',
      err: 'lean-attention: Expected `k` shape[3] to equal headDim 16, got 24.\n',
    });
    expect(existsSync(at('never'))).toBe(false);
  });

  it.skipIf(installation().cuda.available)('a device that is not there: exit code 3 and what to do', () => {
    writeSafetensors(at('in.safetensors'), contiguous());
    const { exitCode, out, err } = asProcess(['run', at('in.safetensors'), '--out', at('never'), '--device', 'cuda']);
    expect({ exitCode, out }).toEqual({ exitCode: 3, out: '' });
    expect(err).toMatch(
      /^lean-attention: .*\. `lean-attention doctor` says what is missing; --device cpu works without it\.\n$/,
    );
    expect(existsSync(at('never'))).toBe(false);
  });
});

const casesFolder = join(import.meta.dirname, '..', '..', 'shared', 'cases');
const caseFiles = existsSync(casesFolder)
  ? readdirSync(casesFolder).filter((name) => name.endsWith('.safetensors'))
  : [];
if (caseFiles.length === 0) console.warn(`Skipped: no shared cases in ${casesFolder}.`);

describe.skipIf(caseFiles.length === 0)('run: every shared case, for every strategy and cut, is within bounds', () => {
  let device: Device;
  beforeAll(() => {
    device = openDevice('cpu');
  });
  afterAll(() => device.dispose());

  describe.each(caseFiles)('%s', (name) => {
    const input = openInput(join(casesFolder, name));
    const expected = (tensorName: string): Float64Array => {
      const file = SafetensorsFile.open(join(casesFolder, name));
      const entry = file.tensors.get(tensorName);
      if (entry === undefined) throw new Error(`${name} has no ${tensorName}`);
      const values = new Float64Array(file.read(entry));
      file.close();
      return values;
    };
    const reference = { out: expected('expected_out'), lse: expected('expected_lse') };

    it('the reference agrees with the file', () => {
      const computed = referenceDecode(decodeOptionsOf(input));
      for (const [i, value] of reference.out.entries()) expect(Math.abs(computed.out[i] - value)).toBeLessThan(1e-9);
      for (const [i, value] of reference.lse.entries()) {
        if (computed.lse[i] !== value) expect(Math.abs(computed.lse[i] - value)).toBeLessThan(1e-9);
      }
    });

    it.each(STRATEGIES)('%s', async (strategy) => {
      for (const workers of [1, 2, 3, 7, 64, 132]) {
        const { result, report } = await runDecode(device, input, { strategy, workers });
        expectClose(result, reference, `${workers} workers`, !name.includes('peaked'));
        expect(report).toMatchObject({ strategy, workers });
      }
    });
  });

  it('through files and a process too', () => {
    const output = at('case.safetensors');
    expect(asProcess(['run', join(casesFolder, caseFiles[0]), '--out', output, '--workers', '7'])).toMatchObject({
      exitCode: 0,
      err: '',
    });
    const [got, given] = [SafetensorsFile.open(output), SafetensorsFile.open(join(casesFolder, caseFiles[0]))];
    const [out, lse, expectedOut, expectedLse] = [
      got.tensors.get('out'),
      got.tensors.get('lse'),
      given.tensors.get('expected_out'),
      given.tensors.get('expected_lse'),
    ];
    if (!(out && lse && expectedOut && expectedLse)) throw new Error('a tensor is missing');
    const bytes = got.read(out);
    const dtype = out.dtype === 'F32' ? 'f32' : out.dtype === 'F16' ? 'f16' : 'bf16';
    const data = dtype === 'f32' ? new Float32Array(bytes) : new Uint16Array(bytes);
    const result: DecodeResult = {
      out: tensor(data, out.shape, { dtype }),
      lse: tensor(new Float32Array(got.read(lse)), lse.shape),
    };
    expectClose(result, {
      out: new Float64Array(given.read(expectedOut)),
      lse: new Float64Array(given.read(expectedLse)),
    });
    got.close();
    given.close();
  });
});

// bench/peers: PyTorch beside the library. There is no PyTorch here, so what runs is what needs none: the choice of shapes, the
// sentences, and the merge, over a run on a GPU that does not exist, with numbers that nobody measured.

import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';

import { afterAll, describe, expect, it } from 'vitest';

import { expectWellFormed } from './helpers/svg';

const peers = path.join(import.meta.dirname, '..', 'bench', 'peers');
const folder = mkdtempSync(path.join(tmpdir(), 'lean-attention-peers-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const gpu = { name: 'Imaginary GPU', computeCapability: '9.9', memoryBytes: 1, l2Bytes: 1, driver: null };
const shape = {
  ...{ device: 'cuda:0', dtype: 'f16', batch: 2, queryLen: 1, numQueryHeads: 8, numKvHeads: 2, headDim: 64 },
  ...{ contextLengths: [1024, 1024], p10Us: 1, p90Us: 1, samples: 9, kvBytes: 2 ** 20, relativeError: 1e-4 },
};
const imaginary = {
  schema: 1,
  environment: { version: '0.0.0', cpu: 'none', threads: 7, instructionSet: 'sm_99', device: 'cuda:0', gpu },
  roofline: { readGBps: 1000 },
  rows: [
    { strategy: 'lean', ...shape, medianUs: 10, gbps: 500, fractionOfRoofline: 0.5, speedupVsFlashAttention2: 4 },
    {
      strategy: 'flash-attention-2',
      ...shape,
      medianUs: 40,
      gbps: 125,
      fractionOfRoofline: 0.125,
      speedupVsFlashAttention2: 1,
    },
  ],
};
const unmeasured = { fractionOfRoofline: null, speedupVsFlashAttention2: null };
const other = {
  schema: 1,
  environment: {
    program: 'bench/peers/sdpa.py',
    torch: '0.0',
    cuda: '0.0',
    cudnn: 0,
    gpu: { name: gpu.name },
    notes: ['a note'],
  },
  rows: [
    { strategy: 'pytorch-sdpa-flash', ...shape, ...unmeasured, medianUs: 20, gbps: 250 },
    { strategy: 'pytorch-sdpa-flash', ...shape, ...unmeasured, headDim: 128, medianUs: 1, gbps: 1 },
  ],
};

function write(name: string, content: unknown): string {
  const file = path.join(folder, name);
  writeFileSync(file, JSON.stringify(content));
  return file;
}

function run(command: string, args: readonly string[]) {
  const { status, stdout, stderr } = spawnSync(command, args, { encoding: 'utf8' });
  return { status, stdout, stderr };
}

const merge = (...args: string[]) => run(process.execPath, [path.join(peers, 'merge.mjs'), ...args]);

describe('merge', () => {
  it('one table and one chart, which say which is which', () => {
    const [json, svg] = [path.join(folder, 'merged.json'), path.join(folder, 'merged.svg')];
    const files = [write('bench.json', imaginary), write('peers.json', other)];
    const { status, stdout, stderr } = merge(...files, '--json', json, '--svg', svg);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    expect(stdout).toMatch(/pytorch-sdpa-flash +20\.0 us +250\.0 +25 % +2\.00 x/);
    expect(stdout).toContain('lean, fixed-split, flash-attention-2: lean-attention 0.0.0');
    expect(stdout).toContain('pytorch-*: PyTorch 0.0');
    expect(stdout).toContain('a note');
    const { rows } = JSON.parse(readFileSync(json, 'utf8'));
    expect(rows).toHaveLength(3);
    expect(rows[2]).toMatchObject({ fractionOfRoofline: 0.25, speedupVsFlashAttention2: 2 });
    const picture = readFileSync(svg, 'utf8');
    expectWellFormed(picture);
    expect(picture).toContain('pytorch-sdpa-flash');
  });

  it('refuses what cannot be compared', () => {
    const elsewhere = { ...other, environment: { ...other.environment, gpu: { name: 'Another GPU' } } };
    const bench = write('bench.json', imaginary);
    const cases: [string[], string][] = [
      [[bench, write('else.json', elsewhere)], 'Expected reports of one GPU, got Imaginary GPU and Another GPU.'],
      [[bench], 'Expected a benchmark and one other report at least.'],
      [
        [bench, write('no.json', {})],
        `Expected ${path.join(folder, 'no.json')} to be a report of schema 1, got another.`,
      ],
    ];
    for (const [files, sentence] of cases) {
      expect(merge(...files)).toEqual({ status: 2, stdout: '', stderr: `merge.mjs: ${sentence}\n` });
    }
  });
});

const python = spawnSync('python3', ['--version']).status === 0;

describe.skipIf(!python)('sdpa.py', () => {
  const script = path.join(peers, 'sdpa.py');

  it('helps without PyTorch', () => {
    const { status, stdout } = run('python3', ['-B', script, '--help']);
    expect(status).toBe(0);
    expect(stdout).toContain('FlashAttention and cuDNN backends');
  });

  it('says what is missing by a sentence', () => {
    const out = path.join(folder, 'out.json');
    const missing = run('python3', ['-B', script, path.join(folder, 'nothing.json'), '--out', out]);
    expect(missing.status).toBe(2);
    expect(missing.stderr).toMatch(
      /^sdpa\.py: expected .*nothing\.json to be what `lean-attention bench --json` writes/,
    );
    if (run('python3', ['-c', 'import torch']).status === 0) return;
    const { status, stderr } = run('python3', ['-B', script, write('bench.json', imaginary), '--out', out]);
    expect({ status, stderr }).toEqual({
      status: 3,
      stderr: 'sdpa.py: PyTorch is not installed here: pip install torch, on a machine with an NVIDIA GPU.\n',
    });
  });

  const evaluate = (code: string, input: unknown): unknown => {
    const imported = `import json, sys; sys.path.insert(0, ${JSON.stringify(peers)}); import sdpa\n${code}`;
    const { stdout, stderr } = spawnSync('python3', ['-B', '-c', imported], {
      input: JSON.stringify(input),
      encoding: 'utf8',
    });
    expect(stderr).toBe('');
    return JSON.parse(stdout);
  };

  it('goes on where a shape does not fit, or a graph of several calls is refused', () => {
    const code = `
def construct(*_):
    raise RuntimeError("CUDA out of memory\\nand more")
class Functional:
    scaled_dot_product_attention = None
class Torch:
    nn = type("nn", (), {"functional": Functional})
class Graph:
    replay = staticmethod(lambda: calls.append("graph"))
calls, notes = [], []
sdpa.Attention = construct
shape = json.load(sys.stdin)
row = sdpa.row_of(Torch, "flash", shape, type("arguments", (), {"pool_gib": 2}), None, notes)
sdpa.capture = lambda torch, attention, slots: Graph if len(slots) == 1 else None
sdpa.time_once = lambda torch, flush, work: (work(), 5e-5)[1]
class Attention:
    slots = [0] * 12
    def __call__(self, slot):
        calls.append(slot)
times, replayed = sdpa.measure(Torch, Attention(), None, 2)
print(json.dumps([row, notes, len(times), times[0], replayed, calls]))`;
    expect(evaluate(code, shape)).toEqual([
      null,
      ['pytorch-sdpa-flash, 8/2 x 64 f16, 2 x 1024: left out: CUDA out of memory'],
      2,
      5e-5 / 4,
      false,
      // Three graphs of one call, then the groups of four in turn, each call by itself.
      ...[['graph', 'graph', 'graph', ...[0, 1, 2, 0, 1].flatMap((group) => [0, 1, 2, 3].map((i) => 4 * group + i))]],
    ]);
  });

  it('takes each shape once, and says which it leaves out', () => {
    const rows = [
      ...imaginary.rows,
      { ...imaginary.rows[0], contextLengths: [64, 7] },
      { ...imaginary.rows[0], dtype: 'f32' },
    ];
    expect(evaluate('print(json.dumps(sdpa.shapes_of(json.load(sys.stdin))))', { rows })).toEqual([
      [expect.objectContaining({ headDim: 64, contextLengths: [1024, 1024] })],
      ['unequal contexts [7, 64]: it takes no lengths', 'f32 with 1 queries: only f16 and bf16 with one are compared'],
    ]);
  });
});

// `lean-attention run`: decode attention over tensors that any framework dumped into a safetensors file.

import type { DecodeOptions, DecodeResult, Device, DeviceSpec, Plan, PlanOptions, Strategy } from '../index';
import { MAX_WORKERS, parseChoice, parseDevice, parseInteger, STRATEGIES } from './arguments';
import { openNamedDevice } from './device';
import { asSentence, ExitCode, InputError, isRefusal } from './errors';
import { formatJson } from './json';
import { defineCommand } from './options';
import { decodeOptionsOf, FILE_TYPE_OF, type RunInput, readRunInput } from './run-input';
import { checkOutputPath, SafetensorsFile, writeSafetensors } from './safetensors';
import type { Terminal } from './terminal';
import { formatBatch, formatMicroseconds, plural } from './units';

/** How to run: what the options say. */
export interface RunSettings {
  readonly strategy: Strategy;
  readonly workers?: number;
  readonly splits?: number;
}

/** What was run; printed by --json as it is. */
export interface RunReport {
  readonly device: string;
  readonly strategy: Strategy;
  readonly workers: number;
  readonly splits: number;
  readonly dtype: { readonly q: string; readonly kv: string };
  readonly layout: string;
  readonly pageTokens: number | null;
  readonly shapes: Readonly<Record<'q' | 'k' | 'v' | 'out' | 'lse', readonly number[]>>;
  readonly batch: number;
  readonly queryLen: number;
  readonly numQueryHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly contextLengths: readonly number[];
  readonly tileTokens: number;
  readonly makespanOverIdeal: number;
  readonly workspaceBytes: number;
  readonly timeUs: number;
}

export const runCommand = defineCommand(
  {
    name: 'run',
    summary: 'Runs decode attention over the tensors of a safetensors file.',
    positionals: ['INPUT.safetensors'],
    options: {
      out: { value: 'FILE', help: 'where `out` and `lse` go (a safetensors file); required' },
      device: { value: 'NAME', help: 'auto (default), cpu, cuda or cuda:N' },
      strategy: { value: 'NAME', help: `${STRATEGIES.join(', ')}; default lean` },
      workers: { value: 'N', help: 'cut the work for N workers instead of as many as the device has' },
      splits: { value: 'N', help: 'splits of each context, with --strategy fixed-split; default by its own rule' },
      json: { help: 'print what was run, and its time, as JSON' },
    },
    notes: [
      'Tensors read (F32, F16 or BF16; NHD unless the metadata `layout` says HND):\n' +
        '  q                [batch, queryLen, numQueryHeads, headDim] or [batch, numQueryHeads, headDim]\n' +
        '  k, v             [batch, capacity, numKvHeads, headDim]\n' +
        '                   with page_table: [numPages, pageTokens, numKvHeads, headDim]\n' +
        '  page_table       I32 [batch, maxPages], optional: the pages of each sequence\n' +
        '  context_lengths  I32 [batch], optional: tokens of each sequence; default the whole capacity',
      'Metadata read: scale (default 1/sqrt(headDim)), layout. softcap and window must be absent or 0.',
      'Tensors written: out (shape and type of q) and lse (F32, the shape of q without headDim; natural logarithm).',
    ],
    examples: [
      'lean-attention run step.safetensors --out result.safetensors',
      'lean-attention run step.safetensors --out result.safetensors --strategy fixed-split --splits 4 --json',
    ],
  },
  async ({ positionals: [inputPath], values, has }, terminal) => {
    if (values.out === undefined) throw new InputError('Expected --out FILE, where the result goes, got none.');
    const strategy = parseChoice('--strategy', values.strategy ?? 'lean', STRATEGIES);
    if (values.splits !== undefined && strategy !== 'fixed-split') {
      throw new InputError(`Expected --splits together with --strategy fixed-split, got --strategy ${strategy}.`);
    }
    const settings: RunSettings = {
      strategy,
      ...(values.workers && { workers: parseInteger('--workers', values.workers, 1, MAX_WORKERS) }),
      ...(values.splits && { splits: parseInteger('--splits', values.splits, 1, MAX_WORKERS) }),
    };
    const spec = parseDevice('--device', values.device ?? 'auto');

    const input = openInput(inputPath);
    checkOutputPath(values.out, inputPath);
    const { result, report } = await runOn(spec, input, settings, terminal);
    writeSafetensors(values.out, [
      { name: 'out', dtype: FILE_TYPE_OF[result.out.dtype], shape: result.out.shape, data: result.out.data },
      { name: 'lse', dtype: 'F32', shape: result.lse.shape, data: result.lse.data },
    ]);
    terminal.out(has('json') ? formatJson(report) : `${describe(report)}; wrote ${values.out}.\n`);
    return ExitCode.ok;
  },
);

export function openInput(path: string): RunInput {
  const file = SafetensorsFile.open(path);
  try {
    return readRunInput(file);
  } finally {
    file.close();
  }
}

/**
 * On the device that was asked for. What an automatic choice refuses, the CPU may take, and a sentence says why; what is
 * wrong for both, the CPU says.
 */
async function runOn(
  spec: DeviceSpec,
  input: RunInput,
  settings: RunSettings,
  terminal: Terminal,
): Promise<{ result: DecodeResult; report: RunReport }> {
  const device = openNamedDevice(spec);
  try {
    return await runDecode(device, input, settings);
  } catch (error) {
    if (spec !== 'auto' || device.type === 'cpu' || !(error instanceof InputError)) throw error;
    const done = await runOn('cpu', input, settings, terminal);
    terminal.err(`On the CPU, as ${device.name} refused: ${error.message}\n`);
    return done;
  } finally {
    device.dispose();
  }
}

/** The whole of a run but the files. */
export async function runDecode(
  device: Device,
  input: RunInput,
  settings: RunSettings,
): Promise<{ result: DecodeResult; report: RunReport }> {
  const { numQueryHeads, numKvHeads, headDim, queryLen, layout, q, k } = input;
  const options: DecodeOptions = { ...decodeOptionsOf(input), ...settings };
  const start = performance.now();
  const result = await inFileWords(async () => device.decode(options));
  const timeUs = Math.round((performance.now() - start) * 1e3);
  const contextLengths = input.contextLengths ?? new Int32Array(q.shape[0]).fill(input.capacity);
  const shape: PlanOptions = { numQueryHeads, numKvHeads, headDim, queryLen, kvType: k.dtype, layout, contextLengths };
  const plan = await inFileWords(async () => device.plan({ ...shape, ...settings }));
  return { result, report: reportOf(device, input, plan, result, timeUs) };
}

/** The library refuses with TypeError and RangeError and speaks of its own options: the file's names are others. */
async function inFileWords<T>(operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    if (!isRefusal(error)) throw error;
    const message = error.message.replaceAll('contextLengths', 'context_lengths').replaceAll('pageTable', 'page_table');
    throw new InputError(asSentence(message));
  }
}

function reportOf(device: Device, input: RunInput, plan: Plan, result: DecodeResult, timeUs: number): RunReport {
  const { q, k, v, layout, pageTokens, queryLen, numQueryHeads, numKvHeads, headDim } = input;
  return {
    device: device.name,
    strategy: plan.strategy,
    workers: plan.workers,
    splits: plan.splits,
    dtype: { q: q.dtype, kv: k.dtype },
    layout,
    pageTokens: pageTokens ?? null,
    shapes: { q: q.shape, k: k.shape, v: v.shape, out: result.out.shape, lse: result.lse.shape },
    batch: q.shape[0],
    queryLen,
    numQueryHeads,
    numKvHeads,
    headDim,
    contextLengths: [...plan.contextLengths],
    tileTokens: plan.tileTokens,
    makespanOverIdeal: plan.makespanOverIdeal,
    workspaceBytes: plan.workspaceBytes,
    timeUs,
  };
}

function describe(report: RunReport): string {
  const { batch, numQueryHeads, numKvHeads, headDim, dtype, pageTokens, layout, contextLengths } = report;
  const cache = pageTokens === null ? layout : `${layout}, pages of ${plural(pageTokens, 'token')}`;
  return (
    `${plural(batch, 'sequence')} (${formatBatch(contextLengths, 4)} tokens), heads ${numQueryHeads}/${numKvHeads}, ` +
    `head dim ${headDim}, ${dtype.kv} K/V (${cache}): ${formatMicroseconds(report.timeUs)} on ${report.device} with ` +
    `${report.strategy}, ${plural(report.workers, 'worker')}, ` +
    `makespan ${report.makespanOverIdeal.toFixed(2)} x the ideal`
  );
}

// `lean-attention bench`: how fast each strategy decodes on this machine, beside the fastest that its memory allows.

import { totalmem } from 'node:os';

import { installation, type Strategy } from '../index';
import {
  DTYPES,
  parseBatch,
  parseChoices,
  parseDevice,
  parseHeadDim,
  parseHeads,
  parseInteger,
  parseLaunch,
  parseMemory,
  parseTokenList,
  STRATEGIES,
} from './arguments';
import { benchChart } from './bench/chart';
import { CpuEngine } from './bench/cpu-engine';
import { CudaEngine } from './bench/cuda-engine';
import type { Engine } from './bench/engine';
import { type Measurement, measureTrial } from './bench/measure';
import { formatOverhead, measureOverhead } from './bench/overhead';
import { PAGE_TOKENS } from './bench/pool';
import { buildReport, describeEnvironment, failedRows, formatCsv, formatReport, type System } from './bench/report';
import { describeTrial, listTrials, OVERHEAD, type Overrides, PRESET_NAMES, type Trial } from './bench/trials';
import { openNamedDevice } from './device';
import { ExitCode, InputError } from './errors';
import { checkWritable, writeText } from './files';
import { formatJson } from './json';
import { defineCommand } from './options';
import { Progress } from './progress';
import type { Terminal } from './terminal';

export const benchCommand = defineCommand(
  {
    name: 'bench',
    summary: 'Measures each strategy, checked against float64, beside a plain read of the same memory.',
    positionals: [],
    options: {
      preset: { value: 'NAME', help: `${PRESET_NAMES.join(', ')}; default quick, about a minute on two cores` },
      device: { value: 'NAME', help: 'auto (default), cpu, cuda or cuda:N' },
      batch: { value: 'N', help: 'sequences in a batch, all of the same context' },
      heads: { value: 'Q/KV', help: 'query heads and KV heads, such as 32/8' },
      'head-dim': { value: 'N', help: 'such as 128' },
      context: { value: 'LIST', help: 'tokens of a sequence: 1k,4k,16k measures each' },
      ragged: { value: 'LIST', help: 'one batch of unequal contexts: 16k,4k,8x512' },
      dtype: { value: 'LIST', help: `${DTYPES.join(', ')}; default f16` },
      strategy: { value: 'LIST', help: `${STRATEGIES.join(', ')}; default all three` },
      pool: { value: 'SIZE', help: 'memory that inputs rotate over, such as 4g; default: several times the caches' },
      launch: { value: 'LIST', help: 'on a GPU, for tuning: copies=bulk,tileTokens=64,stages=3,warps=4,ctasPerSm=1' },
      json: { value: 'FILE', help: 'write everything measured as JSON' },
      csv: { value: 'FILE', help: 'write the rows as CSV' },
      svg: { value: 'FILE', help: 'draw the shares of the roofline' },
    },
    notes: [
      'Options of shape replace that part of the preset. Unequal contexts lie in a paged cache ' +
        `(${PAGE_TOKENS} tokens a page), equal ones in one piece.`,
      'Each strategy is checked against a float64 reference first; a wrong result is reported and ends with exit code 1. ' +
        'Strategies take turns sample by sample, inputs rotate over more memory than the caches hold, and beside every ' +
        'sample a plain read of as many bytes with the same threads is timed: the roofline.',
      'Preset overhead measures what calls cost before any attention is computed, in time and in garbage, for batches of ' +
        'unequal size; it takes --device and --json.',
      'On a GPU, inputs lie in its memory, decodes and reads are captured in CUDA graphs, and its own clock times them. ' +
        'Shapes that do not fit are left out, and a sentence says so.',
    ],
    examples: [
      'lean-attention bench',
      'lean-attention bench --preset llama3-8b --dtype f16,bf16 --svg bench.svg',
      'lean-attention bench --heads 32/8 --context 1k,4k,16k,64k --json bench.json',
      'lean-attention bench --device cuda --preset ragged --json bench.json',
      'lean-attention bench --device cuda --launch copies=bulk,stages=3 --json bulk.json',
      'lean-attention bench --ragged 32k,4k,2k,13x512 --strategy lean,flash-attention-2',
    ],
  },
  async ({ values }, terminal) => {
    if (values.preset === OVERHEAD) return benchOverhead(values, terminal);
    const strategies = parseChoices('--strategy', values.strategy ?? STRATEGIES.join(), STRATEGIES);
    const dtypes = parseChoices('--dtype', values.dtype ?? 'f16', DTYPES);
    const trials = listTrials(values.preset ?? 'quick', dtypes, parseOverrides(values));
    const spec = parseDevice('--device', values.device ?? 'auto');
    for (const path of [values.json, values.csv, values.svg]) if (path !== undefined) checkWritable(path);

    const poolBytes = values.pool === undefined ? undefined : parseMemory('--pool', values.pool);
    const launch = values.launch === undefined ? undefined : parseLaunch('--launch', values.launch);
    const device = openNamedDevice(spec);
    const engine = ((): Engine => {
      try {
        if (device.type !== 'cpu') return new CudaEngine(device, trials, { poolBytes, launch });
        if (launch !== undefined) throw new InputError('Expected --launch only for a CUDA device, got it for the CPU.');
        return new CpuEngine(device, trials, poolBytes);
      } catch (error) {
        device.dispose();
        throw error;
      }
    })();
    try {
      const fitting = trials.filter((trial) => {
        const reason = engine.whyNot(trial);
        if (reason !== undefined) terminal.err(`Left out: ${describeTrial(trial)} ${reason}.\n`);
        return reason === undefined;
      });
      if (fitting.length === 0) throw new InputError('Expected at least one shape that fits into memory, got none.');
      const measurements = await measureAll(engine, fitting, strategies, new Progress(terminal));
      const report = buildReport(engine, system(), measurements);
      terminal.out(formatReport(engine, report, measurements));
      if (values.json !== undefined) writeText(values.json, formatJson(report));
      if (values.csv !== undefined) writeText(values.csv, formatCsv(report));
      if (values.svg !== undefined) writeText(values.svg, benchChart(report));
      const failures = failedRows(measurements);
      for (const { sentence } of failures) terminal.err(`lean-attention: ${sentence}\n`);
      return failures.length === 0 ? ExitCode.ok : ExitCode.failure;
    } finally {
      engine.dispose();
    }
  },
);

/** Its table, and `{ schema, environment, overhead: rows }` as JSON. */
async function benchOverhead(values: Partial<Record<string, string>>, terminal: Terminal): Promise<ExitCode> {
  const { preset: _, device: spec = 'auto', json, ...others } = values;
  const [unused] = Object.keys(others);
  if (unused !== undefined) throw new InputError(`Expected --preset overhead without --${unused}, got both.`);
  if (json !== undefined) checkWritable(json);
  const device = openNamedDevice(parseDevice('--device', spec));
  try {
    const rows = await measureOverhead(device);
    terminal.out(formatOverhead(device, rows));
    if (json !== undefined) {
      writeText(json, formatJson({ schema: 1, environment: describeEnvironment(device, system()), overhead: rows }));
    }
    return ExitCode.ok;
  } finally {
    device.dispose();
  }
}

function system(): System {
  const { version, cpu, addon } = installation();
  return { version, cpu: cpu.model, memoryBytes: totalmem(), compiler: addon.compiler };
}

async function measureAll(
  engine: Engine,
  trials: readonly Trial[],
  strategies: readonly Strategy[],
  progress: Progress,
): Promise<Measurement[]> {
  const measurements: Measurement[] = [];
  try {
    for (const [i, trial] of trials.entries()) {
      const report = (done: number): void => progress.show((i + done) / trials.length, describeTrial(trial));
      report(0);
      measurements.push(await measureTrial(engine, trial, strategies, report));
    }
  } finally {
    progress.clear();
  }
  return measurements;
}

function parseOverrides(
  values: Partial<Record<'batch' | 'heads' | 'head-dim' | 'context' | 'ragged', string>>,
): Overrides {
  const { batch, heads, context, ragged } = values;
  const headDim = values['head-dim'];
  if (ragged !== undefined && (batch !== undefined || context !== undefined)) {
    throw new InputError(
      `Expected --ragged without --batch and --context, got --${batch === undefined ? 'context' : 'batch'} too.`,
    );
  }
  const contexts = context === undefined ? undefined : parseTokenList('--context', context);
  const raggedContexts = ragged === undefined ? undefined : parseBatch('--ragged', ragged);
  if (contexts?.includes(0)) throw new InputError('Expected --context to be numbers above 0, got 0.');
  if (raggedContexts?.every((tokens) => tokens === 0)) {
    throw new InputError('Expected --ragged to hold a context above 0, got only 0.');
  }
  return {
    ...(heads !== undefined && { heads: parseHeads('--heads', heads) }),
    ...(headDim !== undefined && { headDim: parseHeadDim('--head-dim', headDim) }),
    ...(batch !== undefined && { batch: parseInteger('--batch', batch, 1, 4096) }),
    ...(contexts && { contexts }),
    ...(raggedContexts && { ragged: raggedContexts }),
  };
}

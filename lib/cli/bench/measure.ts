// One trial: checked, warmed up, then timed in rounds. A machine's memory speed drifts from one second to the next, so in
// every round each strategy gets one sample right beside a plain read of as many bytes, and fractions are taken per pair.

import type { Device, Plan, Strategy } from '../../index';
import type { Effort, Engine } from './engine';
import { median, percentile } from './statistics';
import { kvBytes, type Trial } from './trials';

export interface Row {
  /** One of the library's, or the name of what it is compared with. */
  readonly strategy: string;
  readonly device: string;
  readonly dtype: string;
  readonly batch: number;
  readonly queryLen: number;
  readonly numQueryHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly contextLengths: readonly number[];
  readonly medianUs: number;
  readonly p10Us: number;
  readonly p90Us: number;
  readonly samples: number;
  readonly kvBytes: number;
  readonly gbps: number;
  readonly fractionOfRoofline: number;
  readonly speedupVsFlashAttention2: number | null;
  readonly relativeError: number;
}

export interface Measurement {
  readonly trial: Trial;
  readonly rows: readonly Row[];
  /** Of each row: how the work was cut, and what ran it. */
  readonly plans: readonly Plan[];
  /** Speed of each plain read, in GB/s. */
  readonly reads: readonly number[];
  readonly outputTiles: number;
  readonly checkedTiles: number;
}

const WARM_UP_ROUNDS = 2;

interface Sample {
  readonly decodeSeconds: number;
  readonly readSeconds: number;
}

export async function measureTrial(
  engine: Engine,
  trial: Trial,
  strategies: readonly Strategy[],
  onProgress: (done: number) => void,
): Promise<Measurement> {
  const prepared = await engine.prepare(trial);
  try {
    const errors: number[] = [];
    for (const strategy of strategies) errors.push(await prepared.relativeError(strategy));
    const sample = async (strategy: Strategy, readFirst: boolean): Promise<Sample> => {
      const before = readFirst ? await prepared.timeRead() : 0;
      const decodeSeconds = await prepared.timeDecode(strategy);
      return { decodeSeconds, readSeconds: readFirst ? before : await prepared.timeRead() };
    };
    const samples = await takeSamples(strategies, sample, engine.effort, onProgress);
    const bytes = kvBytes(trial);
    return {
      trial,
      rows: rowsOf(engine.device, trial, strategies, samples, errors),
      plans: strategies.map((strategy) => planOf(engine, trial, strategy)),
      reads: samples.flat().map(({ readSeconds }) => bytes / readSeconds / 1e9),
      outputTiles: prepared.check.numTiles,
      checkedTiles: prepared.check.numChecked,
    };
  } finally {
    prepared.dispose();
  }
}

function rowsOf(
  device: Device,
  trial: Trial,
  strategies: readonly Strategy[],
  samples: readonly (readonly Sample[])[],
  errors: readonly number[],
): Row[] {
  const bytes = kvBytes(trial);
  const medians = samples.map((list) => median(list.map(({ decodeSeconds }) => decodeSeconds * 1e6)));
  const baseline = strategies.indexOf('flash-attention-2');
  return strategies.map((strategy, i) => {
    const times = samples[i].map(({ decodeSeconds }) => decodeSeconds * 1e6);
    return {
      strategy,
      device: device.name,
      dtype: trial.dtype,
      batch: trial.contextLengths.length,
      queryLen: 1,
      numQueryHeads: trial.numQueryHeads,
      numKvHeads: trial.numKvHeads,
      headDim: trial.headDim,
      contextLengths: trial.contextLengths,
      medianUs: rounded(medians[i]),
      p10Us: rounded(percentile(times, 10)),
      p90Us: rounded(percentile(times, 90)),
      samples: times.length,
      kvBytes: bytes,
      gbps: rounded(bytes / medians[i] / 1e3),
      fractionOfRoofline: rounded(
        median(samples[i].map(({ decodeSeconds, readSeconds }) => readSeconds / decodeSeconds)),
      ),
      speedupVsFlashAttention2: baseline < 0 ? null : rounded(medians[baseline] / medians[i]),
      relativeError: errors[i],
    };
  });
}

/** The schedule of a trial as the device cuts it. */
export function planOf({ device, launch }: Pick<Engine, 'device' | 'launch'>, trial: Trial, strategy: Strategy): Plan {
  const { dtype, numQueryHeads, numKvHeads, headDim, contextLengths } = trial;
  const shape = { numQueryHeads, numKvHeads, headDim, contextLengths, kvType: dtype };
  return device.plan({ ...shape, strategy, ...(launch && { launch }) });
}

/** Rounds of one sample a strategy, the order turned round by round, until time is up. */
async function takeSamples(
  strategies: readonly Strategy[],
  sample: (strategy: Strategy, readFirst: boolean) => Promise<Sample>,
  { seconds, minRounds, maxRounds }: Effort,
  onProgress: (done: number) => void,
): Promise<Sample[][]> {
  for (let round = 0; round < WARM_UP_ROUNDS; ++round) {
    for (const strategy of strategies) await sample(strategy, true);
  }
  const samples: Sample[][] = strategies.map(() => []);
  const start = performance.now();
  for (let round = 0; round < maxRounds; ++round) {
    const elapsed = (performance.now() - start) / 1e3;
    if (round >= minRounds && elapsed >= seconds) break;
    onProgress(Math.max(Math.min(elapsed / seconds, round / minRounds), round / maxRounds));
    for (let i = 0; i < strategies.length; ++i) {
      const turn = (i + round) % strategies.length;
      samples[turn].push(await sample(strategies[turn], round % 2 === 0));
    }
  }
  return samples;
}

/** Four significant digits: more would be noise. */
function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

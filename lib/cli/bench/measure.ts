// One trial: checked, warmed up, then timed in rounds. A machine's memory speed drifts from one second to the next, so in
// every round each strategy gets one sample right beside a plain read of as many bytes, and fractions are taken per pair.

import type { DecodeOptions, Device, Strategy } from '../../index';
import { prepareCheck } from './check';
import { type InputPool, type PoolSlot, randomNormal } from './pool';
import { median, percentile } from './statistics';
import { kvBytes, type Trial } from './trials';

export interface Row {
  readonly strategy: Strategy;
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
  /** Speed of each plain read, in GB/s. */
  readonly reads: readonly number[];
  readonly outputTiles: number;
  readonly checkedTiles: number;
}

export interface Effort {
  /** Seconds to spend on the samples of a trial, all strategies together. */
  readonly seconds: number;
  readonly minRounds: number;
  readonly maxRounds: number;
}

/** Enough for a stable median without making the quick preset slow. */
export const DEFAULT_EFFORT: Effort = { seconds: 4, minRounds: 9, maxRounds: 201 };
const WARM_UP_ROUNDS = 2;

interface Sample {
  readonly decodeSeconds: number;
  readonly readSeconds: number;
}

export function measureTrial(
  device: Device,
  pool: InputPool,
  trial: Trial,
  strategies: readonly Strategy[],
  effort: Effort,
  onProgress: (done: number) => void,
): Measurement {
  const slots = pool.slots(trial);
  const { contextLengths, numQueryHeads, headDim, dtype } = trial;
  const q = randomNormal([contextLengths.length, numQueryHeads, headDim], dtype, 2);
  const lengths = Int32Array.from(contextLengths);
  const optionsFor = ({ k, v, pageTable }: PoolSlot): DecodeOptions => ({
    q,
    k,
    v,
    contextLengths: lengths,
    ...(pageTable && { pageTable }),
  });

  const { out, lse } = device.decodeSync(optionsFor(slots[0]));
  const check = prepareCheck(optionsFor(slots[0]));
  const errors = strategies.map((strategy) =>
    check.relativeError(device.decodeSync({ ...optionsFor(slots[0]), strategy, out, lse }).out),
  );

  let nextSlot = 0;
  const coldSlot = (): PoolSlot => slots[nextSlot++ % slots.length];
  const sample = (strategy: Strategy, readFirst: boolean): Sample => {
    const read = (): number => device.timeRead(coldSlot().buffers);
    const before = readFirst ? read() : 0;
    const options = { ...optionsFor(coldSlot()), strategy, out, lse };
    const start = performance.now();
    device.decodeSync(options);
    const decodeSeconds = (performance.now() - start) / 1e3;
    return { decodeSeconds, readSeconds: readFirst ? before : read() };
  };
  const samples = takeSamples(strategies, sample, effort, onProgress);

  const bytes = kvBytes(trial);
  const medians = samples.map((list) => median(list.map(({ decodeSeconds }) => decodeSeconds * 1e6)));
  const baseline = strategies.indexOf('flash-attention-2');
  const rows = strategies.map((strategy, i): Row => {
    const times = samples[i].map(({ decodeSeconds }) => decodeSeconds * 1e6);
    return {
      strategy,
      device: device.name,
      dtype,
      batch: contextLengths.length,
      queryLen: 1,
      numQueryHeads,
      numKvHeads: trial.numKvHeads,
      headDim,
      contextLengths,
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
  return {
    trial,
    rows,
    reads: samples.flat().map(({ readSeconds }) => bytes / readSeconds / 1e9),
    outputTiles: check.numTiles,
    checkedTiles: check.numChecked,
  };
}

/** Rounds of one sample a strategy, the order turned round by round, until time is up. */
function takeSamples(
  strategies: readonly Strategy[],
  sample: (strategy: Strategy, readFirst: boolean) => Sample,
  { seconds, minRounds, maxRounds }: Effort,
  onProgress: (done: number) => void,
): Sample[][] {
  for (let round = 0; round < WARM_UP_ROUNDS; ++round) {
    for (const strategy of strategies) sample(strategy, true);
  }
  const samples: Sample[][] = strategies.map(() => []);
  const start = performance.now();
  for (let round = 0; round < maxRounds; ++round) {
    const elapsed = (performance.now() - start) / 1e3;
    if (round >= minRounds && elapsed >= seconds) break;
    onProgress(Math.max(Math.min(elapsed / seconds, round / minRounds), round / maxRounds));
    for (let i = 0; i < strategies.length; ++i) {
      const turn = (i + round) % strategies.length;
      samples[turn].push(sample(strategies[turn], round % 2 === 0));
    }
  }
  return samples;
}

/** Four significant digits: more would be noise. */
function rounded(value: number): number {
  return Number(value.toPrecision(4));
}

// What a run of the benchmark says: the JSON document, the CSV rows and the table.

import type { Device } from '../../index';
import { formatTable } from '../table';
import { formatBytes, formatMicroseconds } from '../units';
import { ERROR_BOUNDS } from './check';
import type { Engine } from './engine';
import type { Gpu } from './gpu';
import type { Measurement, Row } from './measure';
import { median } from './statistics';
import { describeTrial } from './trials';

export interface Environment {
  readonly version: string;
  readonly date: string;
  readonly node: string;
  readonly platform: string;
  readonly cpu: string;
  readonly device: string;
  readonly threads: number;
  readonly instructionSet: string;
  readonly memoryBytes: number;
  readonly lastLevelCacheBytes: number | null;
  readonly poolBytes: number;
  readonly compiler: string;
  /** How much of the output the reference check covered. */
  readonly check: string;
  /** Of a run on a GPU: which, and what ran each shape and strategy on it. */
  readonly gpu?: Gpu;
  readonly launches?: readonly string[];
}

export interface BenchReport {
  readonly schema: 1;
  readonly environment: Environment;
  readonly roofline: { readonly readGBps: number };
  readonly rows: readonly Row[];
}

export interface System {
  readonly version: string;
  readonly cpu: string;
  readonly memoryBytes: number;
  readonly compiler: string;
}

/** Where a run took place, whatever was measured. */
export function describeEnvironment(
  device: Device,
  system: System,
): Omit<Environment, 'lastLevelCacheBytes' | 'poolBytes' | 'check'> {
  return {
    version: system.version,
    date: new Date().toISOString(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    cpu: system.cpu,
    device: device.description,
    threads: device.threads,
    instructionSet: device.instructionSet,
    memoryBytes: system.memoryBytes,
    compiler: system.compiler,
  };
}

export function buildReport(engine: Engine, system: System, measurements: readonly Measurement[]): BenchReport {
  const { device, pool, gpu } = engine;
  return {
    schema: 1,
    environment: {
      ...describeEnvironment(device, system),
      lastLevelCacheBytes: pool.lastLevelCacheBytes,
      poolBytes: pool.bytes,
      check: describeCheck(measurements),
      ...(gpu && { gpu, launches: describeLaunches(measurements) }),
    },
    roofline: { readGBps: Number(median(measurements.flatMap(({ reads }) => reads)).toPrecision(4)) },
    rows: measurements.flatMap(({ rows }) => rows),
  };
}

function describeCheck(measurements: readonly Measurement[]): string {
  const partial = measurements.filter(({ checkedTiles, outputTiles }) => checkedTiles < outputTiles);
  if (partial.length === 0) return 'every output against float64';
  const counts = partial.map(
    ({ trial, checkedTiles, outputTiles }) => `${describeTrial(trial)}: ${checkedTiles} of ${outputTiles} output tiles`,
  );
  const rest = partial.length < measurements.length ? '; all others in full' : '';
  return `against float64: ${counts.join('; ')}${rest}`;
}

function describeLaunches(measurements: readonly Measurement[]): string[] {
  return measurements.flatMap(({ trial, plans }) =>
    plans.map(({ strategy, launch }) => `${describeTrial(trial)}, ${strategy}: ${launch}`),
  );
}

export interface FailedRow {
  readonly row: Row;
  readonly sentence: string;
}

/** Rows whose error is larger than promised (NaN counts). */
export function failedRows(measurements: readonly Measurement[]): FailedRow[] {
  return measurements.flatMap(({ trial, rows }) => {
    const bound = ERROR_BOUNDS[trial.dtype];
    return rows
      .filter(({ relativeError }) => !(relativeError <= bound))
      .map((row) => ({
        row,
        sentence:
          `Expected a relative error of at most ${bound} from ${row.strategy} at ${describeTrial(trial)}, ` +
          `got ${row.relativeError.toExponential(1)}.`,
      }));
  });
}

/** Rows of the same shape, in the order in which the shapes come. */
export function groupByShape(rows: readonly Row[]): Row[][] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    const { dtype, numQueryHeads, numKvHeads, headDim, queryLen, contextLengths } = row;
    const shape = JSON.stringify([dtype, numQueryHeads, numKvHeads, headDim, queryLen, contextLengths]);
    const group = groups.get(shape);
    if (group === undefined) groups.set(shape, [row]);
    else group.push(row);
  }
  return [...groups.values()];
}

/** `makespans`: of rows whose schedule is known, the makespan over the ideal. */
export function formatTableOf(rows: readonly Row[], makespans: ReadonlyMap<Row, number> = new Map()): string {
  const lines = groupByShape(rows).flatMap((group) =>
    group.map((row, i) => ({
      row,
      shape: i === 0 ? describeTrial(row) : '',
      bytes: i === 0 ? formatBytes(row.kvBytes) : '',
    })),
  );
  const times = (factor: number | null | undefined): string => (factor == null ? '-' : `${factor.toFixed(2)} x`);
  return formatTable(
    [
      { title: 'shape', cell: ({ shape }) => shape },
      { title: 'K + V', align: 'right', cell: ({ bytes }) => bytes },
      { title: 'strategy', cell: ({ row }) => row.strategy },
      { title: 'median', align: 'right', cell: ({ row }) => formatMicroseconds(row.medianUs) },
      { title: 'GB/s', align: 'right', cell: ({ row }) => row.gbps.toFixed(1) },
      { title: 'of roofline', align: 'right', cell: ({ row }) => `${(100 * row.fractionOfRoofline).toFixed(0)} %` },
      { title: 'vs FA-2', align: 'right', cell: ({ row }) => times(row.speedupVsFlashAttention2) },
      { title: 'makespan', align: 'right', cell: ({ row }) => times(makespans.get(row)) },
      { title: 'error', align: 'right', cell: ({ row }) => row.relativeError.toExponential(1) },
    ],
    lines,
  );
}

export function formatReport(engine: Engine, report: BenchReport, measurements: readonly Measurement[]): string {
  const { environment, roofline, rows } = report;
  const makespans = new Map(
    measurements.flatMap((measurement) =>
      measurement.rows.map((row, i) => [row, measurement.plans[i].makespanOverIdeal] as const),
    ),
  );
  const bounds = Object.entries(ERROR_BOUNDS).map(([dtype, bound]) => `${dtype} ${bound}`);
  return (
    `${describeMachine(environment)}\n\n${formatTableOf(rows, makespans)}\n` +
    `Roofline: ${engine.roofline}; median ${roofline.readGBps} GB/s.\n` +
    'Makespan: what the longest worker has to do, over what the best of all schedules would leave it.\n' +
    `Cold cache (inputs rotate over ${formatBytes(environment.poolBytes)}), medians. ` +
    `Checked: ${environment.check} (bounds ${bounds.join(', ')}).\n`
  );
}

function describeMachine({ device, gpu }: Environment): string {
  if (gpu === undefined) return device;
  const driver = gpu.driver === null ? '' : `, driver ${gpu.driver}`;
  return `${gpu.name}, compute capability ${gpu.computeCapability}${driver}\n${device}`;
}

export function formatCsv({ rows }: BenchReport): string {
  if (rows.length === 0) return '';
  const cell = (value: unknown): string =>
    Array.isArray(value) ? value.join(' ') : value === null ? '' : String(value);
  return `${[Object.keys(rows[0]), ...rows.map((row) => Object.values(row).map(cell))].map((line) => line.join(',')).join('\n')}\n`;
}

// What a run of the benchmark says: the JSON document, the CSV rows and the table.

import type { Device } from '../../index';
import { formatTable } from '../table';
import { formatBytes, formatMicroseconds } from '../units';
import { ERROR_BOUNDS, errorBound } from './check';
import type { Measurement, Row } from './measure';
import type { PoolSize } from './pool';
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

export function buildReport(
  device: Device,
  system: System,
  pool: PoolSize,
  measurements: readonly Measurement[],
): BenchReport {
  return {
    schema: 1,
    environment: {
      version: system.version,
      date: new Date().toISOString(),
      node: process.version,
      platform: `${process.platform}-${process.arch}`,
      cpu: system.cpu,
      device: device.description,
      threads: device.threads,
      instructionSet: device.instructionSet,
      memoryBytes: system.memoryBytes,
      lastLevelCacheBytes: pool.lastLevelCacheBytes,
      poolBytes: pool.bytes,
      compiler: system.compiler,
      check: describeCheck(measurements),
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

export interface FailedRow {
  readonly row: Row;
  readonly sentence: string;
}

/** Rows whose error is larger than promised (NaN counts). */
export function failedRows(measurements: readonly Measurement[]): FailedRow[] {
  return measurements.flatMap(({ trial, rows }) => {
    const bound = errorBound(trial.dtype, trial.contextLengths);
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

export function formatReport(report: BenchReport, measurements: readonly Measurement[]): string {
  const { environment, roofline } = report;
  const lines = measurements.flatMap(({ trial, rows }) =>
    rows.map((row, i) => ({
      row,
      shape: i === 0 ? describeTrial(trial) : '',
      bytes: i === 0 ? formatBytes(row.kvBytes) : '',
    })),
  );
  const table = formatTable(
    [
      { title: 'shape', cell: ({ shape }) => shape },
      { title: 'K + V', align: 'right', cell: ({ bytes }) => bytes },
      { title: 'strategy', cell: ({ row }) => row.strategy },
      { title: 'median', align: 'right', cell: ({ row }) => formatMicroseconds(row.medianUs) },
      { title: 'GB/s', align: 'right', cell: ({ row }) => row.gbps.toFixed(1) },
      { title: 'of roofline', align: 'right', cell: ({ row }) => `${(100 * row.fractionOfRoofline).toFixed(0)} %` },
      {
        title: 'vs FA-2',
        align: 'right',
        cell: ({ row }) =>
          row.speedupVsFlashAttention2 === null ? '-' : `${row.speedupVsFlashAttention2.toFixed(2)} x`,
      },
      { title: 'error', align: 'right', cell: ({ row }) => row.relativeError.toExponential(1) },
    ],
    lines,
  );
  return (
    `${environment.device}\n\n${table}\n` +
    `Roofline: a plain read of the same memory with the same threads, beside every sample; median ${roofline.readGBps} GB/s.\n` +
    `Cold cache (inputs rotate over ${formatBytes(environment.poolBytes)}), medians. ` +
    `Checked: ${environment.check} (bounds ${Object.entries(ERROR_BOUNDS)
      .map(([dtype, bound]) => `${dtype} ${bound}`)
      .join(', ')}).\n`
  );
}

export function formatCsv({ rows }: BenchReport): string {
  if (rows.length === 0) return '';
  const cell = (value: unknown): string =>
    Array.isArray(value) ? value.join(' ') : value === null ? '' : String(value);
  return `${[Object.keys(rows[0]), ...rows.map((row) => Object.values(row).map(cell))].map((line) => line.join(',')).join('\n')}\n`;
}

#!/usr/bin/env node
// One table and one chart of a benchmark and of what other programs wrote about the same shapes on the same GPU.
//
//   node bench/peers/merge.mjs BENCH.json PEERS.json... [--json FILE] [--svg FILE]
//
// Shares of the roofline and speed-ups over flash-attention-2 of the others' rows come from the benchmark's rows of that shape.

import { readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { parseArgs } from 'node:util';

const load = createRequire(import.meta.url);

class InputError extends Error {}

function read(path) {
  try {
    const report = JSON.parse(readFileSync(path, 'utf8'));
    if (report.schema === 1 && Array.isArray(report.rows)) return report;
  } catch (error) {
    throw new InputError(`Expected ${path} to be a report of schema 1, got: ${error.message}.`);
  }
  throw new InputError(`Expected ${path} to be a report of schema 1, got another.`);
}

const shapeOf = ({ dtype, numQueryHeads, numKvHeads, headDim, queryLen, contextLengths }) =>
  JSON.stringify([dtype, numQueryHeads, numKvHeads, headDim, queryLen, contextLengths]);

const rounded = (value) => Number(value.toPrecision(4));

/** A peer's row as if it had been measured in the benchmark; undefined where the benchmark has no such shape. */
function adopt(row, own) {
  const sameShape = own.filter((other) => shapeOf(other) === shapeOf(row));
  if (sameShape.length === 0) return undefined;
  const readGBps = sameShape[0].gbps / sameShape[0].fractionOfRoofline;
  const baseline = sameShape.find(({ strategy }) => strategy === 'flash-attention-2');
  return {
    ...row,
    fractionOfRoofline: rounded(row.gbps / readGBps),
    speedupVsFlashAttention2: baseline === undefined ? null : rounded(baseline.medianUs / row.medianUs),
  };
}

function merge(bench, peers) {
  const gpu = bench.environment.gpu?.name;
  if (gpu === undefined) throw new InputError('Expected the first report to be of a GPU, got one of a CPU.');
  for (const { environment } of peers) {
    if (environment.gpu?.name !== gpu) {
      throw new InputError(`Expected reports of one GPU, got ${gpu} and ${environment.gpu?.name ?? 'none'}.`);
    }
  }
  const adopted = peers.flatMap(({ rows }) => rows.map((row) => adopt(row, bench.rows))).filter((row) => row);
  return {
    ...bench,
    environment: { ...bench.environment, peers: peers.map(({ environment }) => environment) },
    rows: [...bench.rows, ...adopted],
  };
}

function main() {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { json: { type: 'string' }, svg: { type: 'string' } },
  });
  if (positionals.length < 2) throw new InputError('Expected a benchmark and one other report at least.');
  const [bench, ...peers] = positionals.map(read);
  const merged = merge(bench, peers);
  const dist = (name) => load(`../../dist/cli/${name}.js`);
  console.log(dist('bench/report').formatTableOf(merged.rows));
  const { version, gpu } = merged.environment;
  console.log(
    `${gpu.name}. lean, fixed-split, flash-attention-2: lean-attention ${version}, one tile code, three schedules.`,
  );
  for (const { program, torch, cuda, cudnn, notes = [] } of merged.environment.peers) {
    console.log(`pytorch-*: PyTorch ${torch}, CUDA ${cuda}, cuDNN ${cudnn} (${program}), in a process of its own.`);
    for (const note of notes) console.log(`  ${note}`);
  }
  if (values.json !== undefined) writeFileSync(values.json, dist('json').formatJson(merged));
  if (values.svg !== undefined) writeFileSync(values.svg, dist('bench/chart').benchChart(merged));
}

try {
  main();
} catch (error) {
  console.error(`merge.mjs: ${error.message}`);
  process.exitCode = error instanceof InputError ? 2 : 1;
}

// The built command line: its commands in process, where most tests run them, and as a process of their own.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import path from 'node:path';
import type * as Chart from '../../dist/cli/bench/chart';
import type * as Check from '../../dist/cli/bench/check';
import type * as CpuEngines from '../../dist/cli/bench/cpu-engine';
import type * as DevicePools from '../../dist/cli/bench/device-pool';
import type * as Timers from '../../dist/cli/bench/graph-timer';
import type * as Overhead from '../../dist/cli/bench/overhead';
import type * as Report from '../../dist/cli/bench/report';
import type * as Statistics from '../../dist/cli/bench/statistics';
import type * as Trials from '../../dist/cli/bench/trials';
import type * as Commands from '../../dist/cli/commands';
import type * as Errors from '../../dist/cli/errors';
import type * as Json from '../../dist/cli/json';
import type * as Run from '../../dist/cli/run';
import type * as RunInput from '../../dist/cli/run-input';
import type * as Files from '../../dist/cli/safetensors';
import type * as Headers from '../../dist/cli/safetensors-header';

const load = createRequire(import.meta.url);
const folder = path.join(import.meta.dirname, '..', '..', 'dist', 'cli');

const commands: typeof Commands = load(path.join(folder, 'commands.js'));
const errors: typeof Errors = load(path.join(folder, 'errors.js'));
const run: typeof Run = load(path.join(folder, 'run.js'));
const runInput: typeof RunInput = load(path.join(folder, 'run-input.js'));
const files: typeof Files = load(path.join(folder, 'safetensors.js'));
const headers: typeof Headers = load(path.join(folder, 'safetensors-header.js'));
const trials: typeof Trials = load(path.join(folder, 'bench', 'trials.js'));
const statistics: typeof Statistics = load(path.join(folder, 'bench', 'statistics.js'));
const report: typeof Report = load(path.join(folder, 'bench', 'report.js'));
const chart: typeof Chart = load(path.join(folder, 'bench', 'chart.js'));
const check: typeof Check = load(path.join(folder, 'bench', 'check.js'));
const devicePools: typeof DevicePools = load(path.join(folder, 'bench', 'device-pool.js'));
const cpuEngines: typeof CpuEngines = load(path.join(folder, 'bench', 'cpu-engine.js'));
const json: typeof Json = load(path.join(folder, 'json.js'));
const timers: typeof Timers = load(path.join(folder, 'bench', 'graph-timer.js'));

export const { InputError } = errors;
export const { decodeOptionsOf } = runInput;
export const { openInput, runDecode } = run;
export const { checkOutputPath, SafetensorsFile, writeSafetensors } = files;
export const { headerLength, parseHeader, SafetensorsError } = headers;
export const { describeTrial, kvBytes, listTrials, PRESET_NAMES, PRESETS } = trials;
export const { median, percentile } = statistics;
export const { failedRows, formatCsv } = report;
export const { benchChart } = chart;
export const { chooseTiles, prepareCheck } = check;
const overhead: typeof Overhead = load(path.join(folder, 'bench', 'overhead.js'));
export const { measureOverhead } = overhead;
export const { DevicePool } = devicePools;
export const { GraphTimer } = timers;
export const { CpuEngine } = cpuEngines;
export const { formatJson } = json;

export interface Outcome {
  exitCode: number | null;
  out: string;
  err: string;
}

/** A command in process. `terminal` makes stderr one, so that progress shows. */
export async function inProcess(argv: readonly string[], terminal = false): Promise<Outcome> {
  const outcome = { exitCode: 0, out: '', err: '' };
  outcome.exitCode = await commands.execute(argv, {
    out: (text) => {
      outcome.out += text;
    },
    err: (text) => {
      outcome.err += text;
    },
    outColour: false,
    errIsTerminal: terminal,
    columns: 100,
  });
  return outcome;
}

export const mainFile = path.join(folder, 'main.js');

/** A command as the shell runs it. */
export function asProcess(argv: readonly string[], main = mainFile): Outcome {
  const { status, stdout, stderr } = spawnSync(process.execPath, [main, ...argv], { encoding: 'utf8' });
  return { exitCode: status, out: stdout, err: stderr };
}

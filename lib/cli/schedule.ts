// `lean-attention schedule`: how a batch is cut, by each strategy, for any number of workers, as text, JSON or a picture.

import type { Plan, Segment, Strategy } from '../index';
import {
  type Heads,
  MAX_WORKERS,
  parseBatch,
  parseChoices,
  parseHeadDim,
  parseHeads,
  parseInteger,
  STRATEGIES,
} from './arguments';
import { openNamedDevice } from './device';
import { ExitCode, InputError } from './errors';
import { checkWritable, writeText } from './files';
import { formatJson } from './json';
import { defineCommand } from './options';
import { schedulePicture } from './schedule-picture';
import { scheduleText } from './schedule-text';

/** One strategy's schedule, free of the device that planned it. */
export interface ScheduleView {
  readonly strategy: Strategy;
  readonly splits: number;
  readonly makespan: number;
  readonly idealMakespan: number;
  readonly makespanOverIdeal: number;
  readonly numPartials: number;
  readonly workspaceBytes: number;
  readonly segments: readonly Segment[];
}

export interface ScheduleReport extends Heads {
  readonly schema: 1;
  readonly contextLengths: readonly number[];
  readonly headDim: number;
  readonly workers: number;
  readonly tileTokens: number;
  readonly numTiles: number;
  readonly strategies: readonly ScheduleView[];
}

export interface ScheduleSettings extends Heads {
  readonly contextLengths: readonly number[];
  readonly headDim: number;
  readonly workers: number;
  readonly strategies: readonly Strategy[];
  readonly splits?: number;
}

/** More could not be told apart in a picture, nor read as text. */
const MAX_SEGMENTS = 200_000;

export const scheduleCommand = defineCommand(
  {
    name: 'schedule',
    summary: 'Shows how a batch is cut into work, and how long the slowest worker is busy, for each strategy.',
    positionals: [],
    options: {
      context: {
        value: 'LIST',
        help: 'tokens of each sequence: 64k,4k,512; 8x512 is eight sequences of 512; required',
      },
      heads: { value: 'Q/KV', help: 'query heads and KV heads; default 32/8' },
      'head-dim': { value: 'N', help: 'default 128' },
      workers: { value: 'N', help: 'processors: the SMs of a GPU or the threads of a CPU; default 132, an H200' },
      strategy: { value: 'LIST', help: `${STRATEGIES.join(', ')}; default all three` },
      splits: { value: 'N', help: 'splits of each context for fixed-split; default by its own rule' },
      json: { help: 'print every segment as JSON instead' },
      svg: { value: 'FILE', help: 'also draw a picture: a row a worker, a colour an output tile' },
    },
    notes: [
      'A sequence and a KV head make an output tile: all query heads of the group share its K and V. Output tiles are cut ' +
        'into tiles of a fixed number of tokens. The makespan is the number of tiles that the busiest worker computes; the ' +
        'ideal is an equal share.',
    ],
    examples: [
      'lean-attention schedule --context 64k',
      'lean-attention schedule --context 32k,8k,4k,13x512 --heads 32/8 --svg schedule.svg',
      'lean-attention schedule --context 16x4k --workers 16 --strategy lean,fixed-split --json',
    ],
  },
  async ({ values, has }, terminal) => {
    if (values.context === undefined)
      throw new InputError('Expected --context LIST, the tokens of each sequence, got none.');
    const strategies = parseChoices('--strategy', values.strategy ?? STRATEGIES.join(), STRATEGIES);
    if (values.splits !== undefined && !strategies.includes('fixed-split')) {
      throw new InputError(
        `Expected --splits together with --strategy fixed-split, got --strategy ${strategies.join()}.`,
      );
    }
    if (values.svg !== undefined) checkWritable(values.svg);
    const report = planSchedules({
      contextLengths: parseBatch('--context', values.context),
      ...parseHeads('--heads', values.heads ?? '32/8'),
      headDim: parseHeadDim('--head-dim', values['head-dim'] ?? '128'),
      workers: parseInteger('--workers', values.workers ?? '132', 1, MAX_WORKERS),
      strategies,
      ...(values.splits && { splits: parseInteger('--splits', values.splits, 1, MAX_WORKERS) }),
    });
    if (values.svg !== undefined) writeText(values.svg, schedulePicture(report));
    terminal.out(has('json') ? formatJson(report) : scheduleText(report, terminal));
    return ExitCode.ok;
  },
);

export function planSchedules(settings: ScheduleSettings): ScheduleReport {
  const { strategies, splits, ...shape } = settings;
  const device = openNamedDevice('cpu');
  try {
    const plans = strategies.map((strategy) =>
      device.plan({ ...shape, strategy, ...(splits !== undefined && strategy === 'fixed-split' && { splits }) }),
    );
    return {
      schema: 1,
      ...shape,
      tileTokens: plans[0].tileTokens,
      numTiles: plans[0].numTiles,
      strategies: plans.map((plan) => viewOf(plan, shape.numKvHeads)),
    };
  } finally {
    device.dispose();
  }
}

function viewOf(plan: Plan, numKvHeads: number): ScheduleView {
  // A cut makes one segment more of an output tile; the other strategies have a segment a worker.
  const outputs = plan.contextLengths.filter((tokens) => tokens > 0).length * numKvHeads;
  const most = plan.strategy === 'lean' ? outputs + plan.workers : plan.workers;
  if (most > MAX_SEGMENTS) {
    throw new InputError(
      `Expected --context, --heads and --workers to give at most ${MAX_SEGMENTS} segments, got up to ${most}.`,
    );
  }
  const segments = plan.segments();
  return {
    strategy: plan.strategy,
    splits: plan.splits,
    makespan: plan.makespan,
    idealMakespan: plan.idealMakespan,
    makespanOverIdeal: plan.makespanOverIdeal,
    numPartials: segments.filter(({ partial }) => partial).length,
    workspaceBytes: plan.workspaceBytes,
    segments,
  };
}

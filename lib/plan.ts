// A plan: one batch's contexts cut into work, open to inspection, and reusable for every step with the same contexts.

import { isDeepStrictEqual } from 'node:util';
import { type CallNumbers, callNumbers } from './call-numbers';
import { prepareLengths, prepareSchedule } from './decode';
import { DTYPE_CODES, DTYPES, type DType } from './dtype';
import type { DeviceTensor } from './memory';
import type { NativeDevice, NativePlan } from './native';
import {
  DEFAULTS,
  type DecodeOptions,
  type DecodeResult,
  LAYOUTS,
  type Layout,
  LIMITS,
  type ScheduleOptions,
  STRATEGIES,
  type Strategy,
} from './options';
import type { Tensor } from './tensor';
import { expectInteger, expectObject, expectOneOf } from './validate';

/** What a plan is made from: shapes and lengths, no tensors. */
export interface PlanOptions extends ScheduleOptions {
  numQueryHeads: number;
  numKvHeads: number;
  headDim: number;
  /** Queries a sequence, 1 to 16. Default: 1. */
  queryLen?: number;
  /** Type of K and V. Default: 'f16'. */
  kvType?: DType;
  /** Of the tensors that it will run over; it decides, on a CPU, whether heads are cut at the same places. Default: 'NHD'. */
  layout?: Layout;
  /** Tokens of each sequence. */
  contextLengths: Int32Array | readonly number[];
}

/** A piece of a worker's range: consecutive tokens of one output tile, which is one (sequence, kvHead) pair. */
export interface Segment {
  /** The worker that owns it; workers are numbered in the order in which they are dispatched. */
  worker: number;
  /** What runs the worker: workers go to the processor that comes free first. */
  processor: number;
  /** Tiles that the processor computes before this segment. */
  start: number;
  sequence: number;
  kvHead: number;
  /** Its tiles within the output tile, [tileBegin, tileEnd). */
  tileBegin: number;
  tileEnd: number;
  /** Its context tokens, [tokenBegin, tokenEnd). */
  tokenBegin: number;
  tokenEnd: number;
  /** Whether it is one of several that make up its output tile, so that the fix-up merges them. */
  partial: boolean;
  /** How many segments make up its output tile, 1 if it does alone. */
  contributors: number;
}

/** What a plan takes from a decode call: the schedule and the lengths are its own. */
export type PlanTensors = Omit<DecodeOptions<Tensor | DeviceTensor>, keyof ScheduleOptions | 'contextLengths'>;

type Run<T> = (options: DecodeOptions<Tensor | DeviceTensor>, plan: NativePlan) => T;

/** Made by `device.plan(…)`. */
export class Plan {
  readonly strategy: Strategy;
  readonly #device: () => NativeDevice;
  readonly #run: { decode: Run<Promise<DecodeResult>>; decodeSync: Run<DecodeResult> };
  readonly #schedule: ScheduleOptions;
  readonly #numbers: CallNumbers;
  readonly #rows: number;
  #native!: NativePlan;
  #lengths!: Int32Array;
  #summary!: ReturnType<NativePlan['summary']>;
  #launch!: string;

  /** @internal */
  constructor(
    options: PlanOptions,
    device: () => NativeDevice,
    run: { decode: Run<Promise<DecodeResult>>; decodeSync: Run<DecodeResult> },
  ) {
    expectObject('options', options);
    const numKvHeads = expectInteger('numKvHeads', options.numKvHeads, 1, LIMITS.int32);
    const numQueryHeads = expectInteger('numQueryHeads', options.numQueryHeads, 1, LIMITS.int32);
    if (numQueryHeads % numKvHeads !== 0) {
      throw new RangeError(
        `Expected \`numQueryHeads\` to be a multiple of numKvHeads ${numKvHeads}, got ${numQueryHeads}`,
      );
    }
    const headDim = expectInteger('headDim', options.headDim, 8, LIMITS.headDim);
    if (headDim % 8 !== 0) throw new RangeError(`Expected \`headDim\` to be a multiple of 8, got ${headDim}`);
    const queryLen = expectInteger('queryLen', options.queryLen ?? DEFAULTS.queryLen, 1, LIMITS.queryLen);
    const kvType = expectOneOf('kvType', options.kvType ?? DEFAULTS.kvType, DTYPES);
    const layout = expectOneOf('layout', options.layout ?? DEFAULTS.layout, LAYOUTS);
    const schedule = prepareSchedule(options);
    this.#schedule = pickSchedule(options);
    this.#device = device;
    this.#run = run;
    this.#rows = expectInteger(
      'numQueryHeads / numKvHeads x queryLen',
      (numQueryHeads / numKvHeads) * queryLen,
      1,
      LIMITS.int32,
    );
    this.#numbers = {
      schedule,
      queries: { queryLen, numQueryHeads, headDim },
      kv: { kvType: DTYPE_CODES[kvType], numKvHeads },
      headsAdjacent: layout === 'NHD',
    };
    this.update(options.contextLengths);
    this.strategy = STRATEGIES[schedule.strategy];
  }

  /** Cuts the plan anew for other context lengths, of as many sequences or more or fewer. */
  update(contextLengths: Int32Array | readonly number[]): void {
    const lengths = Int32Array.from(prepareLengths(contextLengths));
    const device = this.#device();
    const native = device.plan(callNumbers(this.#numbers), lengths);
    this.#launch = device.describeLaunch(native, this.#rows);
    this.#summary = native.summary();
    this.#native = native;
    this.#lengths = lengths;
  }

  /** Tokens of each sequence. */
  get contextLengths(): Int32Array {
    return this.#lengths.slice();
  }
  /** Workers that the work was cut for. */
  get workers(): number {
    return this.#summary.workers;
  }
  /** Parts per output tile of 'fixed-split', else 1. */
  get splits(): number {
    return this.#summary.splits;
  }
  /** Context tokens of a LeanTile, the unit of work. */
  get tileTokens(): number {
    return this.#summary.tileTokens;
  }
  /** LeanTiles in all. */
  get numTiles(): number {
    return this.#summary.numTiles;
  }
  /** Tiles of the processor that works longest. */
  get makespan(): number {
    return this.#summary.makespan;
  }
  /** The least makespan that any schedule could reach. */
  get idealMakespan(): number {
    return this.#summary.idealMakespan;
  }
  /** 1 is perfect. */
  get makespanOverIdeal(): number {
    return this.idealMakespan === 0 ? 1 : this.makespan / this.idealMakespan;
  }
  /** Scratch memory that a call with this plan uses. */
  get workspaceBytes(): number {
    return this.#device().workspaceBytes(this.#native, this.#rows);
  }
  /** What the device runs the plan with: the kernel, its tile, stages, warps and CTAs, or the CPU's tile code. */
  get launch(): string {
    return this.#launch;
  }

  /** Every segment, worker by worker. */
  segments(): Segment[] {
    const FIELDS = 10; // in the order of csrc/binding/plan.cpp
    const flat = this.#native.segments();
    return Array.from({ length: flat.length / FIELDS }, (_, index) => {
      const [worker, processor, start, sequence, kvHead, tileBegin, tileEnd, , , contributors] = flat.subarray(
        index * FIELDS,
      );
      return {
        worker,
        processor,
        start,
        sequence,
        kvHead,
        tileBegin,
        tileEnd,
        tokenBegin: tileBegin * this.tileTokens,
        tokenEnd: Math.min(tileEnd * this.tileTokens, this.#lengths[sequence]),
        partial: contributors > 1,
        contributors,
      };
    });
  }

  /** Like `device.decode`, with this plan's schedule and lengths; given again, they must be the same. */
  async decode(tensors: PlanTensors): Promise<DecodeResult> {
    return this.#run.decode(this.#planned(tensors), this.#native);
  }

  /** Like `device.decodeSync`, with this plan's schedule and lengths; given again, they must be the same. */
  decodeSync(tensors: PlanTensors): DecodeResult {
    return this.#run.decodeSync(this.#planned(tensors), this.#native);
  }

  #planned(tensors: PlanTensors): DecodeOptions<Tensor | DeviceTensor> {
    const given: Partial<DecodeOptions> = Object(tensors);
    if (given.contextLengths !== undefined && !isDeepStrictEqual(prepareLengths(given.contextLengths), this.#lengths)) {
      throw new RangeError("Expected `contextLengths` to be the plan's where given, got others: see plan.update()");
    }
    const schedule = pickSchedule(given);
    const isGiven = Object.keys(schedule).length > 0;
    if (isGiven && !isDeepStrictEqual(prepareSchedule({ ...this.#schedule, ...schedule }), this.#numbers.schedule)) {
      throw new RangeError(
        "Expected `strategy`, `workers`, `splits` and `launch` to be the plan's where given, got others: make another plan",
      );
    }
    return { ...tensors, contextLengths: this.#lengths };
  }

  /** For logs: the schedule, and what runs it. */
  toString(): string {
    const splits = this.strategy === 'fixed-split' ? ` x ${this.splits} splits` : '';
    return (
      `${this.strategy}${splits}: ${this.numTiles} tiles of ${this.tileTokens} tokens for ${this.workers} workers, ` +
      `makespan ${this.makespan} (ideal ${this.idealMakespan}, x${this.makespanOverIdeal.toFixed(2)}); ${this.launch}`
    );
  }
}

/** The options of the schedule that were given. */
function pickSchedule(options: ScheduleOptions): ScheduleOptions {
  const { strategy, workers, splits, launch } = options;
  const given = Object.entries({ strategy, workers, splits, launch }).filter(([, value]) => value !== undefined);
  return Object.fromEntries(given);
}

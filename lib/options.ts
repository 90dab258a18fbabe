// The options of a decode call, and the only place where defaults are written down.
import type { DeviceTensor } from './memory';
import type { Tensor } from './tensor';

/** How a batch is cut into work. 'lean' is the fast one; the others are there to compare with. */
export type Strategy = 'lean' | 'fixed-split' | 'flash-attention-2';

/** Order of a cache's axes: tokens before heads ('NHD'), or heads before tokens ('HND'). */
export type Layout = 'NHD' | 'HND';

export const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];
export const LAYOUTS: readonly Layout[] = ['NHD', 'HND'];

/** The numbers of csrc/core/schedule.h. */
export const STRATEGY_CODES: Readonly<Record<Strategy, number>> = { lean: 0, 'fixed-split': 1, 'flash-attention-2': 2 };

/** How K and V come into a GPU's shared memory: 16-byte asynchronous copies, or bulk copies (compute capability 9.0 and 10.x). */
export type CopyPath = 'auto' | 'async' | 'bulk';

export const COPY_PATHS: readonly CopyPath[] = ['auto', 'async', 'bulk'];

/** What a GPU's launch may be told, for tuning. Tile, stages and warps are the kernels' own; `plan.launch` shows them. */
export interface LaunchOptions {
  /** Default: 'auto', what was chosen for the architecture. */
  copies?: CopyPath;
  /** CTAs that a multiprocessor holds at once, from 1 to what the kernel is built for. Default: all of them. */
  ctasPerSm?: number;
}

/** How the work is cut. Changes speed and, by rounding, the last bits of the result; nothing else. */
export interface ScheduleOptions {
  /** Default: 'lean'. */
  strategy?: Strategy;
  /** Workers to cut the work for, 1 to 1,048,576. Default: what the device runs at once. */
  workers?: number;
  /** For 'fixed-split': parts per output tile. Default: FlashAttention-2's rule. */
  splits?: number;
  /** CUDA devices only. */
  launch?: LaunchOptions;
}

/** T: where q, k and v may lie. Tensors in host memory are staged on a GPU in every call, those on the device are not. */
export interface DecodeOptions<T extends Tensor | DeviceTensor = Tensor> extends ScheduleOptions {
  /**
   * Queries, [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim]; f32, f16 or bf16. headDim is a
   * multiple of 8 up to 512, queryLen 1 to 16. Of several queries, query i of n sees positions up to
   * contextLength - n + i (causal).
   */
  q: T;
  /**
   * Keys; f32, f16 or bf16. Contiguous: [batch, capacity, numKvHeads, headDim]; paged:
   * [numPages, pageTokens, numKvHeads, headDim]; with layout 'HND' the middle two change places. headDim has stride 1,
   * the other strides are free. numQueryHeads is a multiple of numKvHeads.
   */
  k: T;
  /** Values: shape and type of `k`, strides of its own. */
  v: T;
  /** Default: 'NHD'. */
  layout?: Layout;
  /** Tokens of each sequence, [batch], 0 allowed. Default: the whole capacity. Copied when the call is made. */
  contextLengths?: Int32Array | readonly number[];
  /**
   * Makes the cache paged: the page index of each sequence's n-th page, [batch, maxPages] row by row, or one list a
   * sequence. Entries past a context are ignored. Copied when the call is made.
   */
  pageTable?: Int32Array | readonly (readonly number[])[];
  /** Softmax scale. Default: 1 / sqrt(headDim). */
  scale?: number;
  /** Where to write the output: q's shape and type, contiguous. Default: a new tensor. */
  out?: Tensor;
  /** Where to write the log-sum-exp: q's shape without headDim, f32, contiguous. Default: a new tensor. */
  lse?: Tensor;
}

export interface DecodeResult {
  /** Attention output, q's shape and type. 0 where nothing was attended to. */
  out: Tensor;
  /** Natural logarithm of the sum of exp(score), q's shape without headDim, f32. -infinity where nothing was attended to. */
  lse: Tensor;
}

/** A decode in a stream: everything lies in the device's memory, and the work is cut there. */
export interface StreamDecodeOptions
  extends Omit<DecodeOptions<DeviceTensor>, 'contextLengths' | 'pageTable' | 'out' | 'lse'> {
  /** Tokens of each sequence, i32 [batch]. Read when the work runs. Lengths outside the capacity are cut and reported. */
  contextLengths: DeviceTensor;
  /**
   * Makes the cache paged: i32 [batch, maxPages]. Read when the work runs; entries past a context are ignored, others that
   * are no page count as zeros and are reported.
   */
  pageTable?: DeviceTensor;
  /** Where to write the output: q's shape and type, contiguous. */
  out: DeviceTensor;
  /** Where to write the log-sum-exp: q's shape without headDim, f32, contiguous. */
  lse: DeviceTensor;
}

export const DEFAULTS = {
  strategy: 'lean' as Strategy,
  layout: 'NHD' as Layout,
  /** 0: the device decides. */
  workers: 0,
  /** 0: FlashAttention-2's rule decides. */
  splits: 0,
  copies: 'auto' as CopyPath,
  /** 0: as many as the kernel is built for. */
  ctasPerSm: 0,
  scale: (headDim: number): number => 1 / Math.sqrt(headDim),
} as const;

export const LIMITS = {
  headDim: 512,
  queryLen: 16,
  workers: 1 << 20,
  splits: 1 << 20,
  ctasPerSm: 32,
  int32: 2 ** 31 - 1,
} as const;

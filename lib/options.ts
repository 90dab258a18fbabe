// The options of a decode call, and the only place where defaults are written down.
import type { DType } from './dtype';
import type { KvCache, Sequence } from './kv-cache';
import type { Step } from './kv-step';
import type { KvTable } from './kv-table';
import type { DeviceTensor } from './memory';
import type { Tensor } from './tensor';

/** How a batch is cut into work. 'lean' is the fast one; the others are there to compare with. */
export type Strategy = 'lean' | 'fixed-split' | 'flash-attention-2';

/** Order of a cache's axes: tokens before heads ('NHD'), or heads before tokens ('HND'). */
export type Layout = 'NHD' | 'HND';

/** Which dimensions of a head turn together: i and i + dims / 2 ('half-split'), or 2i and 2i + 1 ('interleaved'). */
export type RotaryPairing = 'half-split' | 'interleaved';

export const STRATEGIES: readonly Strategy[] = ['lean', 'fixed-split', 'flash-attention-2'];
export const LAYOUTS: readonly Layout[] = ['NHD', 'HND'];

/** The numbers of csrc/core/schedule.h. */
export const STRATEGY_CODES: Readonly<Record<Strategy, number>> = { lean: 0, 'fixed-split': 1, 'flash-attention-2': 2 };

/** How K and V come into a GPU's shared memory: 16-byte asynchronous copies, or bulk copies (compute capability 9.0 and 10.x). */
export type CopyPath = 'auto' | 'async' | 'bulk';

export const COPY_PATHS: readonly CopyPath[] = ['auto', 'async', 'bulk'];

/**
 * What a GPU's launch may be told, for tuning. The defaults are a table's, by architecture, head dim and rows (query heads
 * of a KV head x queries); what does not fit the GPU is a RangeError that says what does. `plan.launch` shows what was
 * chosen.
 */
export interface LaunchOptions {
  /** Default: 'auto', what was chosen for the architecture. */
  copies?: CopyPath;
  /**
   * Context tokens of a LeanTile, the unit of work. 16 for each warp; fewer where warps are to share tokens, each with 16
   * rows of its own.
   */
  tileTokens?: number;
  /** Tiles in each CTA's ring, 2 to 6: one is computed while the others are copied. */
  stages?: number;
  /** Warps that compute in each CTA: 1, 2 or 4, and 8 up to head dim 128. 16 rows for each share one read of K and V. */
  warps?: number;
  /** CTAs that a multiprocessor holds at once. */
  ctasPerSm?: number;
}
export const PAIRINGS: readonly RotaryPairing[] = ['half-split', 'interleaved'];
/** The numbers of csrc/core/rotary.h. */
export const PAIRING_CODES: Readonly<Record<RotaryPairing, number>> = { 'half-split': 0, interleaved: 1 };

/** How the work is cut. Changes speed and, by rounding, the last bits of the result; nothing else. */
export interface ScheduleOptions {
  /** Default: 'lean'. */
  strategy?: Strategy;
  /**
   * Workers to cut the work for, 1 to 1,048,576; 'lean' gives them equal shares of the tiles. Default: what the device runs at
   * once, of which a GPU takes no more than finish sooner, and there 'lean' counts an output tile's end as some tiles
   * where contexts differ.
   */
  workers?: number;
  /** For 'fixed-split': parts per output tile. Default: FlashAttention-2's rule. */
  splits?: number;
  /** CUDA devices only. */
  launch?: LaunchOptions;
}

/**
 * Decode over tensors of your own, contiguous or paged. T: where q, k and v may lie. Tensors in host memory are staged on a
 * GPU in every call, those in the device's memory are not.
 */
export interface DecodeOptions<T extends Tensor | DeviceTensor = Tensor> extends ScheduleOptions {
  /**
   * Queries, [batch, numQueryHeads, headDim] or [batch, queryLen, numQueryHeads, headDim]; f32, f16 or bf16. headDim is a
   * multiple of 8 up to 512, queryLen 1 to 16. Of several queries, query i of n sees positions up to
   * contextLength - n + i (causal). On a GPU: of K and V's type, or f32, which is rounded to it before the first product;
   * and a NaN in the V of one of a sequence's own queries reaches all of them.
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
  /** Of `CacheDecodeOptions` alone. */
  cache?: never;
  /** Of `CacheDecodeOptions` alone. */
  layer?: never;
  /** Of `CacheDecodeOptions` alone. */
  sequences?: never;
}

/** Decode over the pages of a `KvCache`. */
export interface CacheDecodeOptions extends ScheduleOptions {
  /**
   * Queries; f32, f16 or bf16; headDim is the cache's, numQueryHeads a multiple of its numKvHeads. Over sequences:
   * [sequences, numQueryHeads, headDim] or [sequences, queryLen, numQueryHeads, headDim], the last query of a sequence at
   * position length - 1. Over a step: [rows, numQueryHeads, headDim], each query at its row's position.
   */
  q: Tensor;
  /** A cache of the device that decodes. */
  cache: KvCache;
  /** Whose K and V, from 0 to cache.layers - 1. */
  layer: number;
  /**
   * Sequences, each seen as it is now (the same one may come twice); or a step, whose rows are each one query that sees
   * its own position and all before it, so that a chunk of a prompt attends within itself too.
   */
  sequences: readonly Sequence[] | Step;
  /** Softmax scale. Default: 1 / sqrt(headDim). */
  scale?: number;
  /** Where to write the output: q's shape and type, contiguous. Default: a new tensor. */
  out?: Tensor;
  /** Where to write the log-sum-exp: q's shape without headDim, f32, contiguous. Default: a new tensor. */
  lse?: Tensor;
  /** Of `DecodeOptions` alone. */
  k?: never;
  /** Of `DecodeOptions` alone. */
  v?: never;
  /** Of `DecodeOptions` alone. */
  layout?: never;
  /** Of `DecodeOptions` alone. */
  contextLengths?: never;
  /** Of `DecodeOptions` alone. */
  pageTable?: never;
}

/** What `device.createKvCache` takes: exactly one of `tokens` and `bytes` says how large. */
export interface KvCacheOptions {
  layers: number;
  numKvHeads: number;
  /** A multiple of 8 up to 512. */
  headDim: number;
  /** Type of K and V. Default: 'f16'. */
  dtype?: DType;
  /** Tokens of a page. Default: 64. */
  pageTokens?: number;
  /** Capacity in tokens of all sequences together, rounded up to pages. */
  tokens?: number;
  /** Capacity in bytes of K and V of all layers, rounded down to pages. */
  bytes?: number;
}

/** Stretches rotary embedding to contexts longer than those of training. */
export type RotaryScaling =
  | { type: 'linear'; factor: number }
  | { type: 'ntk'; factor: number }
  | {
      type: 'yarn';
      factor: number;
      /** Tokens of the context that the model was trained with. */
      originalContext: number;
      /** Default: 32. */
      betaFast?: number;
      /** Default: 1. */
      betaSlow?: number;
      /** What rotated dimensions are multiplied by. Default: 0.1 ln(factor) + 1, and 1 up to a factor of 1. */
      attentionFactor?: number;
    }
  | {
      type: 'llama3';
      factor: number;
      lowFreqFactor: number;
      highFreqFactor: number;
      /** Tokens of the context that the model was trained with. */
      originalContext: number;
    };

/** Rotary position embedding: pair i of a head's dimensions turns by position x base^(-2i / dims). */
export interface RotaryOptions {
  /** Default: 'half-split'. */
  pairing?: RotaryPairing;
  /** Default: 10000. */
  base?: number;
  /** Leading dimensions that turn, an even number; the others stay as they are. Default: headDim. */
  dims?: number;
  scaling?: RotaryScaling;
}

/** What `step.write` takes. */
export interface WriteOptions {
  /** From 0 to cache.layers - 1. */
  layer: number;
  /** Keys of the step's rows, [rows, numKvHeads, headDim]; f32, f16 or bf16, converted to the cache's type. */
  k: Tensor;
  /** Values, likewise; a type and strides of its own. */
  v: Tensor;
  /** Queries to rotate, [rows, numQueryHeads, headDim]: in place, or into `qOut`. Only with `rotary`. */
  q?: Tensor;
  /** Where to write the rotated queries: q's shape and type, contiguous. Default: over q. */
  qOut?: Tensor;
  /** Rotates K, before it is stored, and q by their rows' positions. Default: neither is rotated. */
  rotary?: RotaryOptions;
}

/** What `stream.write` takes: the same in the device's memory, a row for each row of a table. */
export interface StreamWriteOptions {
  /**
   * Whose sequences the rows are the last tokens of. Idle rows are skipped. Each must have been appended to since it was
   * last forked: until then its last token lies in a page that the fork sees too. Unlike `step.write`, this cannot tell.
   */
  table: KvTable;
  /** From 0 to cache.layers - 1. */
  layer: number;
  /** [table.rows, numKvHeads, headDim]; f32, f16 or bf16. */
  k: DeviceTensor;
  /** Likewise. */
  v: DeviceTensor;
  /** Queries to rotate, [table.rows, numQueryHeads, headDim]: in place, or into `qOut`. Only with `rotary`. */
  q?: DeviceTensor;
  /** q's shape and type, contiguous. Default: over q. */
  qOut?: DeviceTensor;
  /** Default: neither K nor q is rotated. */
  rotary?: RotaryOptions;
}

/** What `cache.createTable` takes. */
export interface KvTableOptions {
  /** Sequences of a batch at most. */
  rows: number;
  /** Tokens of a sequence at most. Default: the cache's capacity. */
  maxContext?: number;
}

export interface DecodeResult {
  /** Attention output, q's shape and type. 0 where nothing was attended to. */
  out: Tensor;
  /** Natural logarithm of the sum of exp(score), q's shape without headDim, f32. -infinity where nothing was attended to. */
  lse: Tensor;
}

/** A decode in a stream: everything lies in the device's memory, and the work is cut there. */
export interface StreamDecodeOptions
  extends Omit<
    DecodeOptions<DeviceTensor>,
    'contextLengths' | 'pageTable' | 'out' | 'lse' | 'cache' | 'layer' | 'sequences'
  > {
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
  /** 0: the device decides. */
  launch: { copies: 'auto' as CopyPath, tileTokens: 0, stages: 0, warps: 0, ctasPerSm: 0 },
  scale: (headDim: number): number => 1 / Math.sqrt(headDim),
  queryLen: 1,
  kvType: 'f16' as DType, // of plans, which see no tensors
  deviceDType: 'f32' as DType,
  cache: { dtype: 'f16' as DType, pageTokens: 64 },
  rotary: { pairing: 'half-split' as RotaryPairing, base: 10_000, betaFast: 32, betaSlow: 1 },
} as const;

export const LIMITS = {
  headDim: 512,
  layers: 32_767,
  queryLen: 16,
  workers: 1 << 20,
  splits: 1 << 20,
  launch: { tileTokens: 128, stages: 6, warps: 8, ctasPerSm: 32 },
  int32: 2 ** 31 - 1,
} as const;

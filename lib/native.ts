// The native addon: finds it, loads it, and types all of it. Nothing else touches it.
import { existsSync } from 'node:fs';
import path from 'node:path';
import { LeanAttentionError } from './errors';
import type { KvCacheStats } from './kv-cache';

/** A block of a device's memory, or a part of one. */
export interface NativeMemory {
  /** 0n once it has been released. */
  pointer(): bigint;
  part(byteOffset: number, byteLength: number): NativeMemory;
  released(): boolean;
  /** The whole block, all parts of it. */
  release(): void;
}

/** How the work is cut and launched. */
export interface NativeSchedule {
  strategy: number;
  workers: number;
  splits: number;
  copies: number;
  tileTokens: number;
  stages: number;
  warps: number;
  ctasPerSm: number;
}

/** Shape of the queries. */
export interface NativeQueryShape {
  qType: number;
  batch: number;
  queryLen: number;
  numQueryHeads: number;
  headDim: number;
  qSequenceStride: number;
  qQueryStride: number;
  qHeadStride: number;
}

/** Shape of K and V. */
export interface NativeKvShape {
  kvType: number;
  numKvHeads: number;
  numPages: number;
  pageTokens: number;
  maxPages: number;
  kPageStride: number;
  kTokenStride: number;
  kHeadStride: number;
  vPageStride: number;
  vTokenStride: number;
  vHeadStride: number;
}

/** Sequences of a cache by their ids; with counts and stamp, the tokens that an append made room for. */
export interface NativeBatch {
  sequences: Float64Array;
  counts: Int32Array | null;
  stamp: number;
}

export interface NativeKvCacheShape {
  layers: number;
  numPages: number;
  pageTokens: number;
  numKvHeads: number;
  headDim: number;
  kvType: number;
}

/** Rows to write into a cache's pages (csrc/binding/kv_cache.cpp). */
export interface NativeRows extends NativeBatch {
  layer: number;
  k: ArrayBufferView;
  v: ArrayBufferView;
  q: ArrayBufferView | null;
  qOut: ArrayBufferView | null;
  /** lib/kv-step.ts names them. */
  numbers: Float64Array;
  /** Null: nothing is rotated. */
  inverseFrequencies: Float64Array | null;
}

export interface NativeKvCache {
  createSequence(): number;
  fork(sequence: number): number;
  truncate(sequence: number, length: number): void;
  free(sequence: number): void;
  length(sequence: number): number;
  /** Fills `starts` with the lengths before, and returns the stamp. */
  append(sequences: Float64Array, counts: Int32Array, starts: Int32Array): number;
  write(rows: NativeRows): void;
  /** K (0) or V (1) of a layer. */
  block(layer: number, which: number): NativeMemory;
  /** Fills a table's rows, and returns the range of rows whose pages have changed. */
  fillTable(sequences: Float64Array, lengths: Int32Array, pages: Int32Array): [number, number];
  stats(): KvCacheStats;
  verify(): void;
  close(): void;
}

export interface NativePlan {
  summary(): {
    workers: number;
    splits: number;
    tileTokens: number;
    numTiles: number;
    makespan: number;
    idealMakespan: number;
  };
  segments(): Float64Array;
}

export interface NativeDevice {
  describe(): { name: string; instructionSet: string; processors: number };
  /** lib/call-numbers.ts names the numbers, of this call and the next ones. */
  plan(numbers: Float64Array, contextLengths: Int32Array): NativePlan;
  workspaceBytes(plan: NativePlan, rows: number): number;
  describeLaunch(plan: NativePlan, rows: number): string;
  /** Over the caller's tensors; undefined where it has run. */
  decode(
    asynchronous: boolean,
    numbers: Float64Array,
    q: ArrayBufferView | NativeMemory,
    out: ArrayBufferView,
    lse: ArrayBufferView,
    k: ArrayBufferView | NativeMemory,
    v: ArrayBufferView | NativeMemory,
    contextLengths: Int32Array,
    pageTable: Int32Array | null,
    plan: NativePlan | null,
  ): Promise<void> | undefined;
  /** Over a cache's pages. */
  decodeCache(
    asynchronous: boolean,
    numbers: Float64Array,
    q: ArrayBufferView | NativeMemory,
    out: ArrayBufferView,
    lse: ArrayBufferView,
    cache: NativeKvCache,
    layer: number,
    sequences: Float64Array,
    counts: Int32Array | null,
    stamp: number,
    /** The sequences, which must not be collected, and their pages given away, while the call runs. */
    holds: object,
  ): Promise<void> | undefined;
  allocate(bytes: number): NativeMemory;
  wrap(pointer: bigint, bytes: number): NativeMemory;
  upload(target: NativeMemory, source: ArrayBufferView): void;
  download(source: NativeMemory, target: ArrayBufferView): void;
  createStream(): NativeStream;
  createKvCache(shape: NativeKvCacheShape): NativeKvCache;
  memoryInfo(): { freeBytes: number; totalBytes: number };
  timeRead(buffers: readonly ArrayBufferView[]): number;
  close(): void;
}

/** Handles that only streams open. */
export type NativeEvent = { readonly __event: never };
export type NativeGraph = { readonly __graph: never };

/**
 * Everything lies in the device's memory. A server calls decode and append for every layer of every step, so they take what
 * they need one by one: to read it from an object by name costs more than all the rest.
 */
export interface NativeStream {
  decode(
    /** lib/call-numbers.ts names them. */
    numbers: Float64Array,
    q: NativeMemory,
    k: NativeMemory,
    v: NativeMemory,
    out: NativeMemory,
    lse: NativeMemory,
    contextLengths: NativeMemory,
    pageTable: NativeMemory | null,
  ): void;
  append(
    /** lib/kv-step.ts names them. */
    numbers: Float64Array,
    inverseFrequencies: Float64Array | null,
    k: NativeMemory,
    v: NativeMemory,
    q: NativeMemory | null,
    qOut: NativeMemory | null,
    /** lib/kv-table.ts names them. */
    tableNumbers: Float64Array,
    kPages: NativeMemory,
    vPages: NativeMemory,
    contextLengths: NativeMemory,
    pageTable: NativeMemory,
  ): void;
  upload(target: NativeMemory, source: ArrayBufferView): void;
  copy(target: NativeMemory, source: NativeMemory): void;
  read(source: NativeMemory): void;
  download(source: NativeMemory, target: ArrayBufferView): Promise<void>;
  finish(): Promise<void>;
  record(): NativeEvent;
  wait(event: NativeEvent): void;
  elapsed(start: NativeEvent, end: NativeEvent): number;
  beginCapture(): void;
  endCapture(): NativeGraph;
  launch(graph: NativeGraph): void;
  close(): void;
}

export interface CudaDeviceInfo {
  index: number;
  name: string;
  computeCapability: string;
  memoryBytes: number;
  l2Bytes: number;
  /** Why it cannot be used, and what to do; empty where it can. */
  reason: string;
}

export interface Native {
  setErrorClass(errorClass: typeof LeanAttentionError): void;
  openCpu(threads: number, instructionSet: string): NativeDevice;
  openCuda(index: number): NativeDevice;
  buildInfo(): { compiler: string; buildType: string; napiVersion: number };
  cpuInstructionSets(): string[];
  cudaStatus(): {
    built: boolean;
    reason: string;
    devices: CudaDeviceInfo[];
  };
  convert(source: ArrayBufferView, sourceType: number, target: ArrayBufferView, targetType: number): void;
  mergeStates(
    outs: readonly ArrayBufferView[],
    lses: readonly Float32Array[],
    type: number,
    headDim: number,
    out: ArrayBufferView,
    lse: Float32Array,
  ): void;
}

/** The package's folder: the nearest one up that holds package.json. */
export function packageRoot(): string {
  for (let folder = __dirname; ; folder = path.dirname(folder)) {
    if (existsSync(path.join(folder, 'package.json'))) return folder;
    if (folder !== path.dirname(folder)) continue;
    throw new LeanAttentionError(
      'NATIVE_LOAD_FAILED',
      `Expected lean-attention in its package's folder, got it in ${__dirname} without a package.json above; ` +
        'install it as a package, and have bundlers leave it out (mark it external): its native addon lies beside it',
    );
  }
}

interface Loaded {
  native: Native;
  path: string;
}

let loaded: Loaded | undefined;

function load(): Loaded {
  const root = packageRoot();
  try {
    // Another addon of the same interface: the tests' one rehearses CUDA without a GPU.
    const override = process.env.LEAN_ATTENTION_ADDON;
    const find = require('node-gyp-build') as ((folder: string) => Native) & { resolve(folder: string): string };
    const file = override ?? find.resolve(root);
    const native = override === undefined ? find(root) : (require(override) as Native);
    native.setErrorClass(LeanAttentionError);
    return { native, path: file };
  } catch (error) {
    const found = `${process.platform}-${process.arch}, Node ${process.versions.node}`;
    throw new LeanAttentionError(
      'NATIVE_LOAD_FAILED',
      `The native addon of lean-attention did not load.
  Found:    ${found}, package at ${root}
  Required: a prebuilt addon for this platform, or one built from source (CMake 3.21 or newer and a C++20 compiler)
  To mend:  node ${path.join(root, 'scripts', 'build.cjs')}
  Reason:   ${error instanceof Error ? error.message.split('\n')[0] : String(error)}`,
    );
  }
}

/** The addon, loaded at first use, so that importing the package never throws. */
export function native(): Native {
  loaded ??= load();
  return loaded.native;
}

/** Where the addon was found. */
export function nativePath(): string {
  native();
  return loaded?.path ?? '';
}

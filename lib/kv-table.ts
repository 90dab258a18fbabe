// A batch of a KV cache's sequences as work in a stream finds it: context lengths and page table in the device's memory.
import { DTYPE_CODES, type DType } from './dtype';
import { type KvCache, type Sequence, sequenceIds } from './kv-cache';
import { expectRows, expectRowsApart, expectTogether, rowNumbers } from './kv-step';
import { type DeviceTensor, deviceMemoryOf, expectDeviceTensor } from './memory';
import type { NativeKvCache, NativeStream } from './native';
import type { StreamWriteOptions } from './options';
import { prepareRotary } from './rotary';
import { Stream } from './stream';
import { expectContiguous } from './tensor';
import { describe, expectInteger, expectObject } from './validate';

let numbersOf: (table: KvTable) => Float64Array;

/**
 * Made by `cache.createTable`. It has a fixed number of rows, so that a captured graph serves every later step: rows without
 * a sequence are idle, of length 0.
 */
export class KvTable {
  readonly cache: KvCache;
  /** Sequences of a batch at most. */
  readonly rows: number;
  /** Pages of a sequence at most. */
  readonly maxPages: number;
  /** i32 [rows], as a decode in a stream takes them. */
  readonly contextLengths: DeviceTensor;
  /** i32 [rows, maxPages] */
  readonly pageTable: DeviceTensor;
  readonly #numbers: Float64Array; // in the order of kTableNumbers in csrc/binding/kv_cache.cpp
  readonly #open: () => NativeKvCache;
  // What the device holds once the uploads are over that this stream was given.
  readonly #lengths: Int32Array;
  readonly #pages: Int32Array;
  #upToDate: Stream | undefined;

  /** @internal */
  constructor(cache: KvCache, rows: number, maxPages: number, open: () => NativeKvCache) {
    this.cache = cache;
    this.rows = rows;
    this.maxPages = maxPages;
    const { numKvHeads, headDim, dtype, numPages, pageTokens } = cache;
    this.#numbers = Float64Array.of(rows, numKvHeads, headDim, DTYPE_CODES[dtype], numPages, pageTokens, maxPages);
    this.#open = open;
    this.contextLengths = cache.device.alloc([rows], { dtype: 'i32' });
    this.pageTable = cache.device.alloc([rows, maxPages], { dtype: 'i32' });
    this.#lengths = new Int32Array(rows);
    this.#pages = new Int32Array(rows * maxPages);
  }

  /**
   * Enqueues what puts sequences, as they are now, into the first rows, and leaves the others idle. All lengths go up, and of
   * the page table the rows from the first to the last that have changed.
   */
  update(stream: Stream, sequences: readonly Sequence[]): void {
    const native = this.#open();
    if (!(stream instanceof Stream)) throw new TypeError(`Expected \`stream\` to be a Stream, got ${describe(stream)}`);
    const none = Array.isArray(sequences) && sequences.length === 0;
    const ids = none ? new Float64Array(0) : sequenceIds(this.cache, sequences);
    let [begin, end] = native.fillTable(ids, this.#lengths, this.#pages);
    // What another stream was given, or what failed to go up, is not known to be there.
    if (this.#upToDate !== stream) [begin, end] = [0, this.rows];
    this.#upToDate = undefined;
    stream.upload(this.#lengths, this.contextLengths);
    if (begin < end) {
      const changed = this.#pages.subarray(begin * this.maxPages, end * this.maxPages);
      stream.upload(changed, this.pageTable.slice(begin, end));
    }
    this.#upToDate = stream;
  }

  /** Lets its memory go, once enqueued work no longer uses it. Idempotent. */
  dispose(): void {
    this.contextLengths.dispose();
    this.pageTable.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  static {
    numbersOf = (table) => table.#numbers;
  }
}

/** From the options of a write in a stream to what native code takes. */
export function prepareStreamRows(options: StreamWriteOptions): Parameters<NativeStream['append']> {
  expectObject('options', options);
  const { table } = options;
  if (!(table instanceof KvTable)) throw new TypeError(`Expected \`table\` to be a KvTable, got ${describe(table)}`);
  const { cache, rows } = table;
  const { numKvHeads, headDim } = cache;
  const layer = expectInteger('layer', options.layer, 0, cache.layers - 1);
  const k = expectRows('k', expectNumbers('k', options.k), rows, numKvHeads, headDim);
  const v = expectRows('v', expectNumbers('v', options.v), rows, numKvHeads, headDim);
  const q = options.q === undefined ? null : expectRows('q', expectNumbers('q', options.q), rows, null, headDim);
  expectTogether(options);
  if (q !== null && options.qOut === undefined) expectRowsApart(q);
  let qOut = q;
  if (q !== null && options.qOut !== undefined) {
    qOut = expectRows('qOut', expectNumbers('qOut', options.qOut, q.dtype), rows, q.shape[1], headDim);
    expectContiguous('qOut', qOut);
  }
  const pages = cache.layer(layer);
  const rotary = options.rotary === undefined ? null : prepareRotary(options.rotary, headDim);
  return [
    rowNumbers({ k, v, q, qOut }, rotary),
    rotary === null ? null : rotary.inverseFrequencies,
    deviceMemoryOf(k),
    deviceMemoryOf(v),
    q === null ? null : deviceMemoryOf(q),
    qOut === null ? null : deviceMemoryOf(qOut),
    numbersOf(table),
    deviceMemoryOf(pages.k),
    deviceMemoryOf(pages.v),
    deviceMemoryOf(table.contextLengths),
    deviceMemoryOf(table.pageTable),
  ];
}

function expectNumbers(name: string, value: unknown, dtype?: DType): DeviceTensor & { dtype: DType } {
  const t = expectDeviceTensor(name, value, dtype);
  if (t.dtype === 'i32') throw new TypeError(`Expected \`${name}\` dtype to be 'f32', 'f16' or 'bf16', got 'i32'`);
  return t as DeviceTensor & { dtype: DType };
}

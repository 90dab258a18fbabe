// The KV cache of a server: pages that sequences of any length share, in one allocation.
import type { Device } from './device';
import { DTYPE_BYTES, DTYPE_CODES, DTYPES, type DType } from './dtype';
import { LeanAttentionError } from './errors';
import { Step } from './kv-step';
import { KvTable } from './kv-table';
import { DeviceTensor, deviceMemoryOf, prepareDeviceShape } from './memory';
import type { NativeDevice, NativeKvCache } from './native';
import { DEFAULTS, type KvCacheOptions, type KvTableOptions, LIMITS } from './options';
import { describe, expectInteger, expectIntegers, expectObject, expectOneOf } from './validate';

// The classes lend these to their neighbours, and to nobody else.
/** The native cache, of a cache and a device that are not disposed. */
export let openCache: (cache: KvCache) => NativeKvCache;
let idOf: (sequence: Sequence) => number;

/** What a cache holds at the moment. */
export interface KvCacheStats {
  numPages: number;
  freePages: number;
  usedPages: number;
  /** Used by two sequences or more. */
  sharedPages: number;
  /** Sequences that have not been freed. */
  sequences: number;
  /** Of all sequences; tokens that sequences share count once for each. */
  tokens: number;
  /** Of the used pages, K and V of all layers. */
  bytes: number;
}

/**
 * Made by `device.createKvCache`. Everything but decode and work in streams runs on the calling thread and is done when it
 * returns; on a CUDA device it comes after what streams had enqueued, and waits for a decode in flight where it writes.
 *
 * A decode in flight keeps the memory alive, so nothing here can harm it; but its result is defined only if no token that it
 * reads is overwritten before it has settled. Appending and writing new tokens overwrites none; it can once a sequence that
 * held the token has been truncated or freed.
 */
export class KvCache {
  readonly device: Device;
  readonly layers: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly dtype: DType;
  readonly pageTokens: number;
  readonly numPages: number;
  /** Of K and V of all layers. */
  readonly bytes: number;
  readonly #expectDevice: () => NativeDevice;
  readonly #forgotten: FinalizationRegistry<number>;
  readonly #blocks = new Map<number, { k: DeviceTensor; v: DeviceTensor }>();
  #native: NativeKvCache | undefined;

  /** @internal */
  constructor(options: KvCacheOptions, device: Device, expectDevice: () => NativeDevice) {
    expectObject('options', options);
    this.layers = expectInteger('layers', options.layers, 1, LIMITS.layers);
    this.numKvHeads = expectInteger('numKvHeads', options.numKvHeads, 1, LIMITS.int32);
    this.headDim = expectInteger('headDim', options.headDim, 8, LIMITS.headDim);
    if (this.headDim % 8 !== 0) throw new RangeError(`Expected \`headDim\` to be a multiple of 8, got ${this.headDim}`);
    this.dtype = expectOneOf('dtype', options.dtype ?? DEFAULTS.cache.dtype, DTYPES);
    this.pageTokens = expectInteger('pageTokens', options.pageTokens ?? DEFAULTS.cache.pageTokens, 1, LIMITS.int32);
    const tokenBytes = 2 * this.layers * this.numKvHeads * this.headDim * DTYPE_BYTES[this.dtype];
    this.numPages = countPages(options, this.pageTokens, this.pageTokens * tokenBytes);
    this.bytes = this.numPages * this.pageTokens * tokenBytes;
    this.device = device;
    this.#expectDevice = expectDevice;
    const native = expectDevice().createKvCache({
      layers: this.layers,
      numPages: this.numPages,
      pageTokens: this.pageTokens,
      numKvHeads: this.numKvHeads,
      headDim: this.headDim,
      kvType: DTYPE_CODES[this.dtype],
    });
    this.#native = native;
    // A safety net: a sequence that is dropped without free() gives its pages back when it is collected.
    this.#forgotten = new FinalizationRegistry((id) => native.free(id));
  }

  get disposed(): boolean {
    return this.#native === undefined;
  }

  #open = (): NativeKvCache => {
    this.#expectDevice();
    return this.#undisposed();
  };

  #undisposed(): NativeKvCache {
    if (this.#native === undefined) {
      throw new LeanAttentionError(
        'CACHE_DISPOSED',
        'The KV cache has been disposed; create another with device.createKvCache()',
      );
    }
    return this.#native;
  }

  readonly #owner: Owner = {
    open: () => this.#open(),
    length: (id) => this.#undisposed().length(id),
    adopt: (id) => this.#adopt(id),
    free: (sequence, id) => {
      this.#forgotten.unregister(sequence);
      this.#native?.free(id);
    },
  };

  /** A sequence without tokens, which takes no page yet. */
  createSequence(): Sequence {
    return this.#adopt(this.#open().createSequence());
  }

  #adopt(id: number): Sequence {
    const sequence = new Sequence(this, id, this.#owner);
    this.#forgotten.register(sequence, id, sequence);
    return sequence;
  }

  /**
   * Makes room for `counts[i]` more tokens of sequence i (default: one of each), of all sequences or of none. The step that
   * it returns writes their K and V, layer by layer; until then their content is undefined. A sequence that would write
   * into a page that it shares gets a copy of it here.
   *
   * @throws LeanAttentionError OUT_OF_PAGES with how many pages are needed and how many are free; nothing has changed then.
   */
  append(sequences: readonly Sequence[], counts?: readonly number[]): Step {
    const native = this.#open();
    const ids = sequenceIds(this, sequences);
    const room =
      counts === undefined
        ? new Int32Array(ids.length).fill(1)
        : new Int32Array(expectIntegers('counts', counts, 1, LIMITS.int32));
    if (room.length !== ids.length) {
      throw new RangeError(`Expected \`counts\` to hold ${ids.length} counts, one a sequence, got ${room.length}`);
    }
    const starts = new Int32Array(ids.length);
    const stamp = native.append(ids, room, starts);
    return new Step(this, sequences, starts, { sequences: ids, counts: room, stamp }, this.#open);
  }

  /**
   * K and V of a layer in the device's memory, [numPages, pageTokens, numKvHeads, headDim], as a decode takes them: the same
   * tensors every time, until the cache is disposed.
   */
  layer(layer: number): { k: DeviceTensor; v: DeviceTensor } {
    const native = this.#open();
    expectInteger('layer', layer, 0, this.layers - 1);
    const known = this.#blocks.get(layer);
    if (known !== undefined && !deviceMemoryOf(known.k).released() && !deviceMemoryOf(known.v).released()) return known;
    const shape = prepareDeviceShape([this.numPages, this.pageTokens, this.numKvHeads, this.headDim], {
      dtype: this.dtype,
    });
    const blocks = {
      k: new DeviceTensor(native.block(layer, 0), shape),
      v: new DeviceTensor(native.block(layer, 1), shape),
    };
    this.#blocks.set(layer, blocks);
    return blocks;
  }

  /** Context lengths and page table of a batch in the device's memory, for steps in a stream. */
  createTable(options: KvTableOptions): KvTable {
    expectObject('options', options);
    const rows = expectInteger('rows', options.rows, 1, LIMITS.int32);
    const maxContext = expectInteger('maxContext', options.maxContext ?? this.numPages * this.pageTokens, 1);
    return new KvTable(this, rows, Math.min(this.numPages, Math.ceil(maxContext / this.pageTokens)), this.#open);
  }

  stats(): KvCacheStats {
    return this.#undisposed().stats();
  }

  /** Recounts all pages. @throws LeanAttentionError INTERNAL where the bookkeeping is broken, which would be a bug here. */
  verify(): void {
    this.#undisposed().verify();
  }

  /** Lets the memory go, and with it all sequences. Idempotent. */
  dispose(): void {
    for (const { k, v } of this.#blocks.values()) {
      k.dispose();
      v.dispose();
    }
    this.#blocks.clear();
    this.#native?.close();
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  static {
    openCache = (cache) => cache.#open();
  }
}

/** What a sequence takes from its cache. */
interface Owner {
  open: () => NativeKvCache;
  length: (id: number) => number;
  adopt: (id: number) => Sequence;
  free: (sequence: Sequence, id: number) => void;
}

/** The tokens of one text in a cache. Made by `cache.createSequence` and `fork`. */
export class Sequence {
  readonly cache: KvCache;
  readonly #id: number;
  readonly #owner: Owner;
  #freed = false;

  /** @internal */
  constructor(cache: KvCache, id: number, owner: Owner) {
    this.cache = cache;
    this.#id = id;
    this.#owner = owner;
  }

  /** Tokens; 0 once it has been freed. */
  get length(): number {
    return this.freed ? 0 : this.#owner.length(this.#id);
  }

  /** Whether it has been freed, or its cache disposed. */
  get freed(): boolean {
    return this.#freed || this.cache.disposed;
  }

  /**
   * Another sequence of the same tokens, on the same pages: nothing is copied until one of them appends. Fork after the
   * rows of a step have been written: a step whose sequences were forked since cannot be written any more, and a
   * `stream.write` of the same rows would be seen by both.
   */
  fork(): Sequence {
    return this.#owner.adopt(this.#live().fork(this.#id));
  }

  /** Drops the tokens from `length` on, and the pages that held nothing else. */
  truncate(length: number): void {
    const native = this.#live();
    native.truncate(this.#id, expectInteger('length', length, 0, native.length(this.#id)));
  }

  /** Gives its pages back. Idempotent. */
  free(): void {
    if (this.freed) return;
    this.#freed = true;
    this.#owner.free(this, this.#id);
  }

  [Symbol.dispose](): void {
    this.free();
  }

  #live(): NativeKvCache {
    const native = this.#owner.open();
    if (this.#freed) throw new RangeError('Expected a sequence that is live, got one that has been freed');
    return native;
  }

  static {
    idOf = (sequence) => sequence.#id;
  }
}

/** The ids of live sequences of a cache. */
export function sequenceIds(cache: KvCache, sequences: readonly Sequence[]): Float64Array {
  if (!Array.isArray(sequences)) {
    throw new TypeError(`Expected \`sequences\` to be an array, got ${describe(sequences)}`);
  }
  if (sequences.length === 0) throw new RangeError('Expected `sequences` to hold at least one sequence, got none');
  const ids = new Float64Array(sequences.length);
  for (let i = 0; i < ids.length; ++i) {
    const sequence: unknown = sequences[i];
    if (!(sequence instanceof Sequence)) {
      throw new TypeError(`Expected \`sequences[${i}]\` to be a Sequence, got ${describe(sequence)}`);
    }
    if (sequence.cache !== cache) {
      throw new RangeError(`Expected \`sequences[${i}]\` to be of the cache that is used, got one of another cache`);
    }
    if (sequence.freed) throw new RangeError(`Expected \`sequences[${i}]\` to be live, got one that has been freed`);
    ids[i] = idOf(sequence);
  }
  return ids;
}

function countPages(options: KvCacheOptions, pageTokens: number, pageBytes: number): number {
  const { tokens, bytes } = options;
  if ((tokens === undefined) === (bytes === undefined)) {
    throw new TypeError(
      `Expected exactly one of \`tokens\` and \`bytes\`, got ${tokens === undefined ? 'neither' : 'both'}`,
    );
  }
  const pages =
    tokens !== undefined
      ? Math.ceil(expectInteger('tokens', tokens, 1) / pageTokens)
      : Math.floor(expectInteger('bytes', bytes, 1) / pageBytes);
  if (pages === 0) throw new RangeError(`Expected \`bytes\` to hold a page of ${pageBytes} bytes, got ${bytes}`);
  if (pages > LIMITS.int32) throw new RangeError(`Expected a cache of at most ${LIMITS.int32} pages, got ${pages}`);
  return pages;
}

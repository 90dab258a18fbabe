// Devices: what computes.
/// <reference lib="esnext.disposable" preserve="true" />
import { freemem, totalmem } from 'node:os';
import { expectFixedBuffers, type PreparedCall, prepareCall, rememberBuffers } from './decode';
import { prepareCacheCall } from './decode-cache';
import { LeanAttentionError } from './errors';
import { KvCache } from './kv-cache';
import {
  DeviceTensor,
  type DeviceTensorOptions,
  deviceMemoryOf,
  prepareDeviceShape,
  prepareDownload,
  prepareUpload,
} from './memory';
import { type NativeDevice, type NativePlan, native } from './native';
import type { CacheDecodeOptions, DecodeOptions, DecodeResult, KvCacheOptions } from './options';
import { Plan, type PlanOptions } from './plan';
import { Stream } from './stream';
import { numElements, type Tensor } from './tensor';
import { describe, expectInteger, expectObject, expectOneOf } from './validate';

/** 'auto' takes the first CUDA device if there is one that works, else the CPU, and says why in `description`. */
export type DeviceSpec = 'auto' | 'cpu' | 'cuda' | `cuda:${number}`;

/** Instruction sets that the CPU tile code is built for. */
export type InstructionSet = 'avx512' | 'avx2' | 'portable';

export interface DeviceOptions {
  /** CPU: threads that compute, 1 to 1024. Default: one for each processor that this process may use. */
  threads?: number;
  /** CPU: tile code to use. Default: the best that the processor has. */
  instructionSet?: InstructionSet;
}

const INSTRUCTION_SETS: readonly InstructionSet[] = ['avx512', 'avx2', 'portable'];

/** Made by `openDevice`. Disposing it is safe at any time: calls in flight end as if nothing had happened. */
export class Device {
  readonly type: 'cpu' | 'cuda';
  /** 'cpu', 'cuda:0', … */
  readonly name: string;
  /** What was taken, and why. */
  readonly description: string;
  /** What runs at once: the CPU's threads, the GPU's multiprocessors. */
  readonly threads: number;
  /** What the tile code is built for. */
  readonly instructionSet: string;
  #native: NativeDevice | undefined;

  /** @internal */
  constructor(device: NativeDevice, type: 'cpu' | 'cuda', reason: string) {
    const { name, instructionSet, processors } = device.describe();
    this.#native = device;
    this.type = type;
    this.name = name;
    this.threads = processors;
    this.instructionSet = instructionSet;
    const unit = type === 'cpu' ? 'thread' : 'multiprocessor';
    this.description = `${name} (${processors} ${unit}${processors === 1 ? '' : 's'}, ${instructionSet})${reason}`;
  }

  get disposed(): boolean {
    return this.#native === undefined;
  }

  #open = (): NativeDevice => {
    if (this.#native === undefined) {
      throw new LeanAttentionError(
        'DEVICE_DISPOSED',
        `The device ${this.name} has been disposed; open another with openDevice()`,
      );
    }
    return this.#native;
  };

  #prepare(options: DecodeOptions<Tensor | DeviceTensor> | CacheDecodeOptions, plan: NativePlan | null): PreparedCall {
    expectObject('options', options);
    const ofCache = plan === null && (options.cache ?? options.sequences ?? options.layer) !== undefined;
    return ofCache
      ? prepareCacheCall(options as CacheDecodeOptions, this)
      : prepareCall(options as DecodeOptions<Tensor | DeviceTensor>, plan);
  }

  #decode = async (
    options: DecodeOptions<Tensor | DeviceTensor> | CacheDecodeOptions,
    plan: NativePlan | null,
  ): Promise<DecodeResult> => {
    const device = this.#open();
    const call = this.#prepare(options, plan);
    const views = call.views();
    expectFixedBuffers(views);
    const expectAttached = rememberBuffers(views);
    await call.run(device, true);
    expectAttached();
    return call.result;
  };

  #decodeSync = (
    options: DecodeOptions<Tensor | DeviceTensor> | CacheDecodeOptions,
    plan: NativePlan | null,
  ): DecodeResult => {
    const device = this.#open();
    const call = this.#prepare(options, plan);
    call.run(device, false);
    return call.result;
  };

  /**
   * Decode attention: out = softmax(scale q kᵀ) v for each sequence's query rows over its own context: K and V are
   * tensors of your own, or the pages of a `KvCache` of this device.
   *
   * Runs off the JavaScript thread. Context lengths and page table are copied before this returns; the tensors must stay
   * as they are, and their buffers must not be transferred, until the promise has settled: a transferred buffer that its
   * new owner drops meanwhile is memory that is gone, and the process can crash.
   *
   * Rejects with TypeError or RangeError for the caller's mistakes, before anything runs, and with LeanAttentionError for
   * the world's. Source: LeanAttention, arXiv 2405.10480.
   */
  decode(options: DecodeOptions<Tensor | DeviceTensor> | CacheDecodeOptions): Promise<DecodeResult> {
    return this.#decode(options, null);
  }

  /** Like `decode`, on the calling thread and the device's own: for work of microseconds. */
  decodeSync(options: DecodeOptions<Tensor | DeviceTensor> | CacheDecodeOptions): DecodeResult {
    return this.#decodeSync(options, null);
  }

  /** Cuts a batch into work without running it; the plan can then run it any number of times. */
  plan(options: PlanOptions): Plan {
    return new Plan(options, this.#open, { decode: this.#decode, decodeSync: this.#decodeSync });
  }

  /** The device's memory, for all that use it together: what a cache can be given. On the CPU device, the machine's. */
  memory(): { freeBytes: number; totalBytes: number } {
    const device = this.#open();
    return this.type === 'cuda' ? device.memoryInfo() : { freeBytes: freemem(), totalBytes: totalmem() };
  }

  /** Memory of the device for a tensor, of zeros. On the CPU device it is memory outside of JavaScript's heap. */
  alloc(shape: readonly number[], options: DeviceTensorOptions = {}): DeviceTensor {
    expectObject('options', options);
    const prepared = prepareDeviceShape(shape, options);
    return new DeviceTensor(this.#open().allocate(prepared.bytes), prepared);
  }

  /**
   * Copies a tensor to the device, into new memory or into `target` (contiguous, of its shape and type); an Int32Array
   * becomes an i32 tensor of one axis. Blocks while it copies, after what streams had enqueued: in a step, use a stream.
   */
  upload(source: Tensor | Int32Array, target?: DeviceTensor): DeviceTensor {
    const copy = prepareUpload(source, target);
    const to = copy.target ?? this.alloc(copy.shape, { dtype: copy.dtype });
    this.#open().upload(deviceMemoryOf(to), copy.data);
    return to;
  }

  /** Copies a contiguous tensor back, into a new tensor or into `target`. Blocks, after what streams had enqueued. */
  download(source: DeviceTensor, target?: Tensor): Tensor {
    const to = prepareDownload(source, target);
    this.#open().download(deviceMemoryOf(source), to.data.subarray(0, numElements(to.shape)));
    return to;
  }

  /**
   * A tensor over memory of this device that somebody else owns, such as PyTorch's `data_ptr()`. It must hold the whole
   * shape and stay alive while work uses it, and what another library enqueued to write it must be over: its streams and
   * these do not wait for each other. None of it can be checked.
   */
  wrap(pointer: bigint, shape: readonly number[], options: DeviceTensorOptions = {}): DeviceTensor {
    if (typeof pointer !== 'bigint') {
      throw new TypeError(`Expected \`pointer\` to be a BigInt, got ${describe(pointer)}`);
    }
    expectObject('options', options);
    const prepared = prepareDeviceShape(shape, options);
    return new DeviceTensor(this.#open().wrap(pointer, prepared.bytes), prepared);
  }

  /**
   * A queue of work of its own, in order; queues run beside each other. CUDA devices only.
   *
   * @throws LeanAttentionError UNSUPPORTED on the CPU.
   */
  createStream(): Stream {
    return new Stream(this.#open().createStream());
  }

  /**
   * A paged cache for K and V of all layers, in one allocation: nothing grows in a step.
   *
   * On a CUDA device it holds f16 or bf16, of head dims up to 256.
   *
   * @throws LeanAttentionError OUT_OF_MEMORY.
   */
  createKvCache(options: KvCacheOptions): KvCache {
    return new KvCache(options, this, this.#open);
  }

  /** Seconds that a plain read of all these bytes takes with the threads that decode uses: the roofline. Blocks. */
  timeRead(buffers: readonly ArrayBufferView[]): number {
    if (!Array.isArray(buffers)) throw new TypeError(`Expected \`buffers\` to be an array, got ${describe(buffers)}`);
    for (const [index, buffer] of buffers.entries()) {
      if (!ArrayBuffer.isView(buffer)) {
        throw new TypeError(
          `Expected \`buffers[${index}]\` to be a typed array or a DataView, got ${describe(buffer)}`,
        );
      }
    }
    return this.#open().timeRead(buffers);
  }

  /** Lets the device go. Idempotent. */
  dispose(): void {
    this.#native?.close();
    this.#native = undefined;
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/**
 * Opens a device.
 *
 * @throws LeanAttentionError CUDA_UNAVAILABLE when 'cuda' is asked for and cannot be had: it never falls back.
 */
export function openDevice(spec: DeviceSpec = 'auto', options: DeviceOptions = {}): Device {
  const match = typeof spec === 'string' ? /^(?:auto|cpu|cuda(?::(0|[1-9]\d{0,3}))?)$/.exec(spec) : null;
  if (match === null) {
    const message = `Expected a device 'auto', 'cpu', 'cuda' or 'cuda:N', got ${describe(spec)}`;
    throw typeof spec === 'string' ? new RangeError(message) : new TypeError(message);
  }
  expectObject('options', options);
  const threads = options.threads === undefined ? 0 : expectInteger('threads', options.threads, 1, 1024);
  if (spec.startsWith('cuda')) return new Device(native().openCuda(Number(match[1] ?? 0)), 'cuda', '');

  let reason = '';
  if (spec === 'auto') {
    const cuda = native().cudaStatus();
    const passed: string[] = [];
    for (const { index, reason } of cuda.devices) {
      try {
        const why = ['taken because a CUDA device was found', ...passed].join('; not cuda:');
        return new Device(native().openCuda(index), 'cuda', `, ${why}`);
      } catch (error) {
        if (!(error instanceof LeanAttentionError)) throw error;
        passed.push(`${index}: ${reason || error.message}`);
      }
    }
    reason = `, taken because no CUDA device can be used: ${cuda.reason || `cuda:${passed.join('; cuda:')}`}`;
  }
  const available = native().cpuInstructionSets() as InstructionSet[];
  const instructionSet = options.instructionSet;
  if (
    instructionSet !== undefined &&
    !available.includes(expectOneOf('instructionSet', instructionSet, INSTRUCTION_SETS))
  ) {
    throw new RangeError(
      `Expected \`instructionSet\` to be one that this processor has (${available.join(', ')}), got '${instructionSet}'`,
    );
  }
  return new Device(native().openCpu(threads, instructionSet ?? ''), 'cpu', reason);
}

// Timing on a CUDA device: inputs lie in its memory, work is captured in CUDA graphs and timed by the device's clock, the
// roofline too.

import {
  type Device,
  type DeviceTensor,
  type LaunchOptions,
  LeanAttentionError,
  type Strategy,
  type Stream,
  tensor,
} from '../../index';
import { InputError } from '../errors';
import { formatBytes } from '../units';
import { type Check, prepareTileCheck } from './check';
import { DevicePool, type DeviceSlot, pageTableOf } from './device-pool';
import type { Effort, Engine, PreparedTrial } from './engine';
import { describeGpu, type Gpu } from './gpu';
import { GraphTimer, SAMPLE_SECONDS } from './graph-timer';
import { planOf } from './measure';
import { footprint, largestFootprint, type PoolSize, randomNormal } from './pool';
import type { Trial } from './trials';

const GIB = 2 ** 30;

export interface CudaEngineOptions {
  /** What inputs rotate over. */
  readonly poolBytes?: number | undefined;
  /** What one sample should last. */
  readonly sampleSeconds?: number;
  readonly launch?: LaunchOptions | undefined;
}

export class CudaEngine implements Engine {
  readonly gpu: Gpu;
  readonly pool: PoolSize;
  readonly effort: Effort = { seconds: 1, minRounds: 9, maxRounds: 101 };
  readonly roofline =
    'a plain read of as many bytes on the same GPU, in a CUDA graph and between events as the decodes, beside every sample';
  readonly launch: LaunchOptions | undefined;
  readonly #sampleSeconds: number;
  readonly #stream: Stream;
  #memory: { readonly inputs: DevicePool; readonly flush: DeviceTensor } | undefined;

  constructor(
    readonly device: Device,
    trials: readonly Trial[],
    { poolBytes, sampleSeconds = SAMPLE_SECONDS, launch }: CudaEngineOptions = {},
  ) {
    if (trials.some(({ dtype }) => dtype === 'f32')) {
      throw new InputError(
        `Expected --dtype to be f16 or bf16 on ${device.name}, which has no kernels for f32, got f32.`,
      );
    }
    this.launch = launch;
    this.gpu = describeGpu(device);
    this.pool = choosePool(this.gpu, trials, poolBytes);
    this.#sampleSeconds = sampleSeconds;
    this.#stream = device.createStream();
  }

  whyNot(trial: Trial): string | undefined {
    const bytes = footprint(trial);
    if (bytes > this.pool.limit) return `takes ${formatBytes(bytes)}, and ${formatBytes(this.pool.limit)} can be used`;
    try {
      planOf(this, trial, 'lean');
      return undefined;
    } catch (error) {
      const refused =
        error instanceof LeanAttentionError ? error.code === 'CUDA_UNAVAILABLE' : error instanceof RangeError;
      if (!refused) throw error;
      return `cannot run on ${this.device.name}: ${(error as Error).message}`;
    }
  }

  async prepare(trial: Trial): Promise<PreparedTrial> {
    this.#memory ??= {
      inputs: new DevicePool(this.device, this.#stream, this.pool.bytes),
      flush: this.device.alloc([flushBytes(this.gpu, this.pool.bytes) / 2], { dtype: 'f16' }),
    };
    const { inputs, flush } = this.#memory;
    inputs.fill(trial.dtype);
    const place = { device: this.device, stream: this.#stream, inputs, flush, launch: this.launch };
    return new CudaTrial(place, trial, this.#sampleSeconds);
  }

  dispose(): void {
    this.#memory?.inputs.dispose();
    this.#memory?.flush.dispose();
    this.#stream.dispose();
    this.device.dispose();
  }
}

/** Several times the L2, so that nothing of the slots outlives it there, and a hundred microseconds of reading at least. */
function flushBytes({ l2Bytes }: Gpu, poolBytes: number): number {
  return Math.min(Math.max(GIB / 2, 4 * l2Bytes), poolBytes);
}

/** `asked`, else 2 GiB and several times the L2; room for the largest trial; never more than half of the GPU's memory. */
function choosePool(gpu: Gpu, trials: readonly Trial[], asked: number | undefined): PoolSize {
  const half = Math.floor(gpu.memoryBytes / 2);
  const limit = half - Math.min(flushBytes(gpu, half), half / 4);
  const wanted = Math.max(asked ?? Math.max(2 * GIB, 16 * gpu.l2Bytes), largestFootprint(trials, limit));
  return { bytes: Math.floor(Math.min(wanted, limit) / 4096) * 4096, lastLevelCacheBytes: gpu.l2Bytes, limit };
}

interface Place {
  readonly device: Device;
  readonly stream: Stream;
  readonly inputs: DevicePool;
  readonly flush: DeviceTensor;
  readonly launch: LaunchOptions | undefined;
}

class CudaTrial implements PreparedTrial {
  readonly check: Check;
  readonly #place: Place;
  readonly #trial: Trial;
  readonly #sampleSeconds: number;
  readonly #tensors: Record<'q' | 'out' | 'lse' | 'contextLengths', DeviceTensor> & { pageTable?: DeviceTensor };
  readonly #timers = new Map<Strategy | 'read', Promise<GraphTimer>>();

  constructor(place: Place, trial: Trial, sampleSeconds: number) {
    const { device, inputs } = place;
    const { contextLengths, numQueryHeads, numKvHeads, headDim, dtype } = trial;
    const q = randomNormal([contextLengths.length, numQueryHeads, headDim], dtype, 2);
    const groupSize = numQueryHeads / numKvHeads;
    const tileQueries = (sequence: number, kvHead: number) => {
      const begin = (sequence * numQueryHeads + kvHead * groupSize) * headDim;
      return tensor(q.data.subarray(begin, begin + groupSize * headDim), [1, groupSize, headDim], { dtype });
    };
    this.check = prepareTileCheck({
      ...trial,
      tile: (sequence, kvHead) => ({
        q: tileQueries(sequence, kvHead),
        ...inputs.hostTile(trial, sequence, kvHead),
      }),
    });
    this.#place = place;
    this.#trial = trial;
    this.#sampleSeconds = sampleSeconds;
    const table = pageTableOf(trial);
    this.#tensors = {
      q: device.upload(q),
      out: device.alloc(q.shape, { dtype }),
      lse: device.alloc(q.shape.slice(0, -1)),
      contextLengths: device.upload(Int32Array.from(contextLengths)),
      ...(table && {
        pageTable: device.upload(
          table,
          device.alloc([contextLengths.length, table.length / contextLengths.length], { dtype: 'i32' }),
        ),
      }),
    };
  }

  /** Through a graph, as it is timed; the output holds NaN before, so that what nobody writes shows. */
  async relativeError(strategy: Strategy): Promise<number> {
    const { stream } = this.#place;
    const { out } = this.#tensors;
    const poison = tensor(new Uint16Array(out.bytes / 2).fill(0x7fff), out.shape, { dtype: this.#trial.dtype });
    this.#decode(strategy, 0); // makes room for the workspace, outside of the capture
    const graph = stream.capture(() => this.#decode(strategy, 0));
    stream.upload(poison, out);
    stream.launch(graph);
    return this.check.relativeError(await stream.download(out));
  }

  timeDecode(strategy: Strategy): Promise<number> {
    return this.#time(strategy, (slot) => this.#decode(strategy, slot));
  }

  timeRead(): Promise<number> {
    return this.#time('read', (slot) => this.#place.stream.read(this.#slot(slot).kv));
  }

  dispose(): void {
    for (const one of Object.values(this.#tensors)) one.dispose();
  }

  #decode(strategy: Strategy, slot: number): void {
    const { k, v } = this.#slot(slot);
    const { stream, launch } = this.#place;
    stream.decode({ ...this.#tensors, k, v, strategy, ...(launch && { launch }) });
  }

  #slot(index: number): DeviceSlot {
    return this.#place.inputs.slot(this.#trial, index);
  }

  async #time(kind: Strategy | 'read', enqueue: (slot: number) => void): Promise<number> {
    let timer = this.#timers.get(kind);
    if (timer === undefined) {
      const { stream, flush, inputs } = this.#place;
      timer = GraphTimer.make(stream, flush, inputs.numSlots(this.#trial), enqueue, this.#sampleSeconds);
      this.#timers.set(kind, timer);
    }
    return (await timer).time();
  }
}

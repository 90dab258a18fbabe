// Timing on the CPU: synchronous calls over tensors in host memory, by the clock of the host.

import type { DecodeOptions, DecodeResult, Device, Strategy } from '../../index';
import { formatBytes } from '../units';
import { type Check, prepareCheck } from './check';
import type { Effort, Engine, PreparedTrial } from './engine';
import { choosePoolSize, footprint, InputPool, type PoolSize, type PoolSlot, randomNormal } from './pool';
import type { Trial } from './trials';

export class CpuEngine implements Engine {
  readonly pool: PoolSize;
  /** Enough for a stable median without making the quick preset slow. */
  readonly effort: Effort = { seconds: 4, minRounds: 9, maxRounds: 201 };
  readonly roofline = 'a plain read of the same memory with the same threads, beside every sample';
  #inputs: InputPool | undefined;

  constructor(
    readonly device: Device,
    trials: readonly Trial[],
    poolBytes: number | undefined,
  ) {
    this.pool = choosePoolSize(trials, poolBytes);
  }

  whyNot(trial: Trial): string | undefined {
    const bytes = footprint(trial);
    if (bytes <= this.pool.limit) return undefined;
    return `takes ${formatBytes(bytes)}, and ${formatBytes(this.pool.limit)} can be used`;
  }

  async prepare(trial: Trial): Promise<PreparedTrial> {
    this.#inputs ??= new InputPool(this.pool.bytes);
    return new CpuTrial(this.device, this.#inputs.slots(trial), trial);
  }

  dispose(): void {
    this.device.dispose();
  }
}

class CpuTrial implements PreparedTrial {
  readonly check: Check;
  readonly #device: Device;
  readonly #slots: readonly PoolSlot[];
  readonly #optionsFor: (slot: PoolSlot) => DecodeOptions;
  readonly #targets: DecodeResult;
  #nextSlot = 0;

  constructor(device: Device, slots: readonly PoolSlot[], { contextLengths, numQueryHeads, headDim, dtype }: Trial) {
    const q = randomNormal([contextLengths.length, numQueryHeads, headDim], dtype, 2);
    const lengths = Int32Array.from(contextLengths);
    this.#device = device;
    this.#slots = slots;
    this.#optionsFor = ({ k, v, pageTable }) => ({
      q,
      k,
      v,
      contextLengths: lengths,
      ...(pageTable && { pageTable }),
    });
    this.#targets = device.decodeSync(this.#optionsFor(slots[0]));
    this.check = prepareCheck(this.#optionsFor(slots[0]));
  }

  /** The output holds NaN before, so that what nobody writes shows. */
  async relativeError(strategy: Strategy): Promise<number> {
    const { out } = this.#targets;
    out.data.fill(out.dtype === 'f32' ? Number.NaN : 0x7fff);
    const options = { ...this.#optionsFor(this.#slots[0]), ...this.#targets, strategy };
    return this.check.relativeError(this.#device.decodeSync(options).out);
  }

  async timeDecode(strategy: Strategy): Promise<number> {
    const options = { ...this.#optionsFor(this.#coldSlot()), ...this.#targets, strategy };
    const start = performance.now();
    this.#device.decodeSync(options);
    return (performance.now() - start) / 1e3;
  }

  async timeRead(): Promise<number> {
    return this.#device.timeRead(this.#coldSlot().buffers);
  }

  dispose(): void {}

  #coldSlot(): PoolSlot {
    return this.#slots[this.#nextSlot++ % this.#slots.length];
  }
}

// Cold inputs in a GPU's memory: one block of random values, divided into slots that each hold a trial's K and V. The values
// repeat one block of numbers that the host keeps, so the host can compute any part of the reference without a copy of it.

import {
  type DecodeOptions,
  type Device,
  type DeviceTensor,
  type DType,
  type Stream,
  type Tensor,
  tensor,
} from '../../index';
import { BLOCK_ELEMENTS, countPages, footprint, PAGE_TOKENS, randomNormal, scatteredPages, slotElements } from './pool';
import { elementBytes, kvBytes, type Trial } from './trials';

/** Graphs hold a node for each slot; so many are enough whatever the shape. */
const MAX_SLOTS = 1024;

/** K and V of one decode, and the same bytes in one piece, for the roofline. */
export interface DeviceSlot {
  readonly k: DeviceTensor;
  readonly v: DeviceTensor;
  readonly kv: DeviceTensor;
}

export class DevicePool {
  readonly #device: Device;
  readonly #stream: Stream;
  readonly #memory: DeviceTensor;
  #block: Tensor | undefined;

  constructor(
    device: Device,
    stream: Stream,
    readonly bytes: number,
  ) {
    this.#device = device;
    this.#stream = stream;
    this.#memory = device.alloc([bytes / 2], { dtype: 'f16' });
  }

  /** Fills the whole pool with values of a type, unless it holds them already. */
  fill(dtype: DType): void {
    if (this.#block?.dtype === dtype) return;
    const total = this.bytes / elementBytes(dtype);
    const length = Math.min(BLOCK_ELEMENTS, total);
    const block = randomNormal([length], dtype, 1);
    this.#stream.upload(block, this.#view(0, [length], dtype));
    // What is there is copied behind itself, until the pool is full.
    for (let filled = length; filled < total; ) {
      const count = Math.min(filled, total - filled);
      this.#stream.copy(this.#view(0, [count], dtype), this.#view(filled, [count], dtype));
      filled += count;
    }
    this.#block = block;
  }

  numSlots(trial: Trial): number {
    return Math.min(MAX_SLOTS, Math.floor(this.bytes / footprint(trial)));
  }

  /** Views of the pool: nothing to dispose of, and no longer to be used than the pool. */
  slot(trial: Trial, index: number): DeviceSlot {
    const { dtype } = trial;
    const keys = 2 * index * slotElements(trial);
    const shape = cacheShape(trial);
    return {
      k: this.#view(keys, shape, dtype),
      v: this.#view(keys + slotElements(trial), shape, dtype),
      kv: this.#view(keys, [kvBytes(trial) / elementBytes(dtype)], dtype),
    };
  }

  /** K and V of one output tile of the first slot, from the host's numbers. */
  hostTile(trial: Trial, sequence: number, kvHead: number): Pick<DecodeOptions, 'k' | 'v' | 'contextLengths'> {
    const { contextLengths, numKvHeads, headDim, dtype } = trial;
    const context = contextLengths[sequence];
    const table = pageTableOf(trial);
    const gathered = (begin: number): Tensor => {
      const data = new Uint16Array(context * headDim);
      for (let token = 0; token < context; ++token) {
        const row =
          table === undefined
            ? sequence * contextLengths[0] + token
            : table[(sequence * table.length) / contextLengths.length + Math.floor(token / PAGE_TOKENS)] * PAGE_TOKENS +
              (token % PAGE_TOKENS);
        this.#copyRow(
          begin + (row * numKvHeads + kvHead) * headDim,
          data.subarray(token * headDim, (token + 1) * headDim),
        );
      }
      return tensor(data, [1, context, 1, headDim], { dtype });
    };
    return { k: gathered(0), v: gathered(slotElements(trial)), contextLengths: [context] };
  }

  /** What the pool holds from an element on. */
  #copyRow(begin: number, target: Uint16Array): void {
    const block = (this.#block as Tensor).data as Uint16Array;
    const at = begin % block.length;
    if (at + target.length <= block.length) target.set(block.subarray(at, at + target.length));
    else for (let i = 0; i < target.length; ++i) target[i] = block[(at + i) % block.length];
  }

  #view(begin: number, shape: readonly number[], dtype: DType): DeviceTensor {
    return this.#device.wrap(this.#memory.pointer + BigInt(begin * elementBytes(dtype)), shape, { dtype });
  }

  dispose(): void {
    this.#memory.dispose();
  }
}

/** Every slot's own, counted from its first page; undefined where contexts are equal and lie in one piece. */
export function pageTableOf({ contextLengths, paged }: Trial): Int32Array | undefined {
  return paged ? scatteredPages(contextLengths, 0) : undefined;
}

function cacheShape({ contextLengths, numKvHeads, headDim, paged }: Trial): number[] {
  return paged
    ? [countPages(contextLengths), PAGE_TOKENS, numKvHeads, headDim]
    : [contextLengths.length, contextLengths[0], numKvHeads, headDim];
}

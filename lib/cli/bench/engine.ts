// What the measuring loop sees of a device: a trial made ready, checked, and timed one sample at a time, each sample cold.

import type { Device, LaunchOptions, Strategy } from '../../index';
import type { Check } from './check';
import type { Gpu } from './gpu';
import type { PoolSize } from './pool';
import type { Trial } from './trials';

export interface Effort {
  /** Seconds to spend on the samples of a trial, all strategies together. */
  readonly seconds: number;
  readonly minRounds: number;
  readonly maxRounds: number;
}

export interface Engine {
  readonly device: Device;
  /** What the inputs rotate over. */
  readonly pool: PoolSize;
  readonly effort: Effort;
  /** How the roofline is measured, for people. */
  readonly roofline: string;
  readonly gpu?: Gpu;
  /** What decodes are launched with, where the library's choice is not wanted. */
  readonly launch?: LaunchOptions | undefined;
  /** Why it cannot run a trial, as the end of a sentence; undefined when it can. */
  whyNot(trial: Trial): string | undefined;
  prepare(trial: Trial): Promise<PreparedTrial>;
  dispose(): void;
}

export interface PreparedTrial {
  /** The float64 reference of the inputs that `relativeError` decodes. */
  readonly check: Pick<Check, 'numTiles' | 'numChecked'>;
  relativeError(strategy: Strategy): Promise<number>;
  /** Seconds of one decode of cold inputs. */
  timeDecode(strategy: Strategy): Promise<number>;
  /** Seconds of a plain read of as many cold bytes. */
  timeRead(): Promise<number>;
  dispose(): void;
}

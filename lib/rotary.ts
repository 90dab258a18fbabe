// Rotary position embedding: from its options to inverse frequencies and an amplitude, all in double precision.
import { DEFAULTS, PAIRING_CODES, PAIRINGS, type RotaryOptions, type RotaryScaling } from './options';
import { expectInteger, expectNumber, expectObject, expectOneOf } from './validate';

/** What native code rotates by. */
export interface Rotary {
  pairing: number;
  /** [dims / 2] radians a token. */
  inverseFrequencies: Float64Array;
  /** What rotated dimensions are multiplied by. */
  amplitude: number;
}

export function prepareRotary(options: RotaryOptions, headDim: number): Rotary {
  expectObject('rotary', options);
  const pairing = expectOneOf('rotary.pairing', options.pairing ?? DEFAULTS.rotary.pairing, PAIRINGS);
  const base = expectNumber('rotary.base', options.base ?? DEFAULTS.rotary.base, 1);
  const dims = expectInteger('rotary.dims', options.dims ?? headDim, 2, headDim);
  if (dims % 2 !== 0) throw new RangeError(`Expected \`rotary.dims\` to be even, got ${dims}`);
  const { scaling } = options;
  if (scaling === undefined) {
    return { pairing: PAIRING_CODES[pairing], inverseFrequencies: frequencies(base, dims), amplitude: 1 };
  }
  expectObject('rotary.scaling', scaling);
  const type = expectOneOf('rotary.scaling.type', scaling.type, Object.keys(SCALINGS) as RotaryScaling['type'][]);
  expectPositive('factor', scaling.factor);
  const scale = SCALINGS[type] as (scaling: RotaryScaling, base: number, dims: number) => Scaled;
  return { pairing: PAIRING_CODES[pairing], ...scale(scaling, base, dims) };
}

type Scaled = Omit<Rotary, 'pairing'>;
type Scale<Type> = (scaling: Extract<RotaryScaling, { type: Type }>, base: number, dims: number) => Scaled;

const SCALINGS: { [Type in RotaryScaling['type']]: Scale<Type> } = {
  /** Position interpolation, arXiv 2306.15595. */
  linear: ({ factor }, base, dims) => ({
    inverseFrequencies: frequencies(base, dims).map((frequency) => frequency / factor),
    amplitude: 1,
  }),

  /** A larger base: the slowest pair is stretched by the factor, the fastest not at all. */
  ntk: ({ factor }, base, dims) => ({
    inverseFrequencies: frequencies(dims > 2 ? base * factor ** (dims / (dims - 2)) : base, dims),
    amplitude: 1,
  }),

  /** arXiv 2309.00071: pairs that turn often in the original context stay, those that turn seldom are interpolated. */
  yarn: (scaling, base, dims) => {
    const { factor } = scaling;
    const context = expectPositive('originalContext', scaling.originalContext);
    const fast = expectPositive('betaFast', scaling.betaFast ?? DEFAULTS.rotary.betaFast);
    const slow = expectPositive('betaSlow', scaling.betaSlow ?? DEFAULTS.rotary.betaSlow);
    // The pair, as a fraction, that makes so many turns in the original context.
    const pairOf = (turns: number): number => (dims * Math.log(context / (turns * 2 * Math.PI))) / (2 * Math.log(base));
    const low = Math.max(Math.floor(pairOf(fast)), 0);
    const high = Math.min(Math.ceil(pairOf(slow)), dims - 1);
    const width = high === low ? 0.001 : high - low;
    return {
      inverseFrequencies: frequencies(base, dims).map((frequency, pair) => {
        const interpolated = Math.min(Math.max((pair - low) / width, 0), 1);
        return frequency * (1 - interpolated) + (frequency / factor) * interpolated;
      }),
      amplitude:
        scaling.attentionFactor === undefined
          ? factor > 1
            ? 0.1 * Math.log(factor) + 1
            : 1
          : expectPositive('attentionFactor', scaling.attentionFactor),
    };
  },

  /** Llama 3.1's: wavelengths that fit the original context stay, long ones are stretched, with a ramp between. */
  llama3: (scaling, base, dims) => {
    const { factor } = scaling;
    const context = expectPositive('originalContext', scaling.originalContext);
    const lowFactor = expectPositive('lowFreqFactor', scaling.lowFreqFactor);
    const highFactor = expectNumber('rotary.scaling.highFreqFactor', scaling.highFreqFactor, lowFactor);
    return {
      inverseFrequencies: frequencies(base, dims).map((frequency) => {
        const turns = (context * frequency) / (2 * Math.PI);
        const kept = Math.min(Math.max((turns - lowFactor) / (highFactor - lowFactor), 0), 1);
        return (frequency / factor) * (1 - kept) + frequency * kept;
      }),
      amplitude: 1,
    };
  },
};

const expectPositive = (name: string, value: unknown): number => expectNumber(`rotary.scaling.${name}`, value, 0);

// Of a model there is one such list, and every layer of every step asks for it.
let known = { base: 0, dims: 0, frequencies: new Float64Array(0) };

/** Nobody writes to what this returns. */
function frequencies(base: number, dims: number): Float64Array {
  if (known.base !== base || known.dims !== dims) {
    const list = Float64Array.from({ length: dims / 2 }, (_, pair) => base ** ((-2 * pair) / dims));
    known = { base, dims, frequencies: list };
  }
  return known.frequencies;
}

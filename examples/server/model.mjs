// @ts-check
// The model: what the server asks of one, and a toy that answers.
//
// The toy is a real decoder-only transformer (RMSNorm, grouped-query attention with rotary positions, SwiGLU), but a tiny
// one with random weights: its text is gibberish, always the same for the same seed. Its tokens are bytes.
import { setImmediate } from 'node:timers/promises';
import { tensor } from 'lean-attention';
import { addTo, multiply, normalise, swiglu } from './maths.mjs';
import { random } from './sampling.mjs';
import { byteDecoder, encodeBytes } from './text.mjs';

/**
 * The one interface between the server and a model. A real model takes the toy's place by being one of these: its other
 * layers (embeddings, projections, MLPs) run wherever they run, its attention goes through `step.write` and
 * `device.decode`, once a layer.
 *
 * @typedef {object} Model
 * @property {string} name
 * @property {number} end The token that ends a text; never shown.
 * @property {{ layers: number, numKvHeads: number, headDim: number }} cacheShape What the cache must hold for a token.
 * @property {(text: string) => number[]} encode A prompt's tokens; at least one.
 * @property {() => import('./text.mjs').Decoder} decoder For the tokens of one completion.
 * @property {Forward} forward
 */

/**
 * Runs rows through all layers. Row r is `tokens[r]` at `step.positions[r]` of the sequence that `step` put it to; on the
 * way each layer's keys and values go into `cache`. Resolves with the logits of those rows that `wanted` names: prompts
 * need only those of their last token.
 *
 * @callback Forward
 * @param {Int32Array} tokens
 * @param {import('lean-attention').Step} step
 * @param {import('lean-attention').KvCache} cache
 * @param {readonly number[]} wanted
 * @returns {Promise<Float32Array[]>}
 */

/**
 * @typedef {object} Shape
 * @property {number} layers
 * @property {number} width
 * @property {number} numQueryHeads
 * @property {number} numKvHeads
 * @property {number} headDim
 * @property {number} hidden Width of the MLP.
 * @property {number} rotaryBase
 */

/** @type {Readonly<Shape>} */
export const SHAPE = {
  layers: 2,
  width: 64,
  numQueryHeads: 4,
  numKvHeads: 2,
  headDim: 16,
  hidden: 128,
  rotaryBase: 10_000,
};

export const VOCABULARY = 257;
/** Ends a text, and begins every prompt, so that there is none without a token. */
export const END = 256;

/** Readable gibberish: of the bytes, printable ASCII is what the toy likes. @param {number} token */
const likes = (token) => (token === END ? -2 : token >= 32 && token < 127 ? 0 : -12);

/**
 * Matrices are [outputs, inputs].
 *
 * @param {Shape} shape
 * @param {number} seed
 */
export function randomWeights({ layers, width, numQueryHeads, numKvHeads, headDim, hidden }, seed) {
  const uniform = random(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
  /** @param {number} outputs @param {number} inputs @param {number} [scale] */
  const matrix = (outputs, inputs, scale = 1 / Math.sqrt(inputs)) =>
    Float32Array.from({ length: outputs * inputs }, () => normal() * scale);
  const gains = () => Float32Array.from({ length: width }, () => 1 + 0.1 * normal());
  return {
    embedding: matrix(VOCABULARY, width, 1),
    layers: Array.from({ length: layers }, () => ({
      attentionNorm: gains(),
      query: matrix(numQueryHeads * headDim, width),
      key: matrix(numKvHeads * headDim, width),
      value: matrix(numKvHeads * headDim, width),
      output: matrix(width, numQueryHeads * headDim),
      mlpNorm: gains(),
      gate: matrix(hidden, width),
      up: matrix(hidden, width),
      down: matrix(width, hidden),
    })),
    norm: gains(),
    logits: matrix(VOCABULARY, width, 2 / Math.sqrt(width)),
    bias: Float32Array.from({ length: VOCABULARY }, (_, token) => likes(token)),
  };
}

/**
 * @param {import('lean-attention').Device} device
 * @param {{ seed?: number, shape?: Shape, schedule?: import('lean-attention').ScheduleOptions }} [options] `schedule`: how
 *   attention is cut into work, passed on to `device.decode`.
 */
export function createToyModel(device, { seed = 1, shape = SHAPE, schedule = {} } = {}) {
  const { width, numQueryHeads, numKvHeads, headDim, hidden } = shape;
  const weights = randomWeights(shape, seed);
  const rotary = /** @type {const} */ ({ pairing: 'half-split', base: shape.rotaryBase });

  /** @type {Forward} */
  async function forward(tokens, step, cache, wanted) {
    const rows = tokens.length;
    /** @param {number} columns */
    const matrix = (columns) => new Float32Array(rows * columns);
    const x = matrix(width);
    for (let row = 0; row < rows; ++row) {
      x.set(weights.embedding.subarray(tokens[row] * width, (tokens[row] + 1) * width), row * width);
    }
    const normal = matrix(width);
    const change = matrix(width);
    const q = tensor(matrix(numQueryHeads * headDim), [rows, numQueryHeads, headDim]);
    const k = tensor(matrix(numKvHeads * headDim), [rows, numKvHeads, headDim]);
    const v = tensor(matrix(numKvHeads * headDim), [rows, numKvHeads, headDim]);
    const [gate, up] = [matrix(hidden), matrix(hidden)];

    for (const [layer, weight] of weights.layers.entries()) {
      normalise(x, weight.attentionNorm, normal);
      multiply(normal, weight.query, /** @type {Float32Array} */ (q.data), width);
      multiply(normal, weight.key, /** @type {Float32Array} */ (k.data), width);
      multiply(normal, weight.value, /** @type {Float32Array} */ (v.data), width);
      step.write({ layer, k, v, q, rotary }); // turns q and k to their positions; k and v are in the cache from here on
      // Off this thread: while attention runs, the event loop turns.
      const { out } = await device.decode({ q, cache, layer, sequences: step, ...schedule });
      multiply(/** @type {Float32Array} */ (out.data), weight.output, change, numQueryHeads * headDim);
      addTo(x, change);

      await setImmediate(); // what this thread computes itself comes in pieces: requests are served in between
      normalise(x, weight.mlpNorm, normal);
      multiply(normal, weight.gate, gate, width);
      multiply(normal, weight.up, up, width);
      swiglu(gate, up);
      multiply(gate, weight.down, change, hidden);
      addTo(x, change);
    }

    await setImmediate();
    normalise(x, weights.norm, normal);
    return wanted.map((row) => {
      const logits = new Float32Array(VOCABULARY);
      multiply(normal.subarray(row * width, (row + 1) * width), weights.logits, logits, width);
      addTo(logits, weights.bias);
      return logits;
    });
  }

  return {
    name: `toy-${seed}`,
    end: END,
    cacheShape: { layers: shape.layers, numKvHeads, headDim },
    /** @param {string} text */
    encode: (text) => [END, ...encodeBytes(text)],
    decoder: byteDecoder,
    forward,
    weights,
    shape,
  };
}

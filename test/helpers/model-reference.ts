// The example's transformer once more, written for reading: in float64, without a cache, every token from scratch. It
// shares the weights with examples/server/model.mjs and nothing else.
import type { DType } from 'lean-attention';
import type { randomWeights, Shape } from '../../examples/server/model.mjs';
import { round } from './numbers';

type Weights = ReturnType<typeof randomWeights>;
type Vector = number[];

/** matrix is [outputs, inputs], row by row. */
function times(matrix: Float32Array, x: Vector): Vector {
  const outputs = matrix.length / x.length;
  return Array.from({ length: outputs }, (_, row) =>
    x.reduce((sum, value, column) => sum + value * matrix[row * x.length + column], 0),
  );
}

const plus = (a: Vector, b: ArrayLike<number>): Vector => a.map((value, i) => value + b[i]);

function rmsNorm(x: Vector, gains: Float32Array): Vector {
  const meanSquare = x.reduce((sum, value) => sum + value ** 2, 0) / x.length;
  return x.map((value, i) => (value / Math.sqrt(meanSquare + 1e-5)) * gains[i]);
}

/** Element i and its partner half a head further on turn by position / base^(2i / headDim). */
function turned(head: Vector, position: number, base: number): Vector {
  const half = head.length / 2;
  return head.map((value, i) => {
    const angle = position * base ** (-(2 * (i % half)) / head.length);
    const partner = i < half ? -head[i + half] : head[i - half];
    return value * Math.cos(angle) + partner * Math.sin(angle);
  });
}

function softmax(scores: Vector): Vector {
  const largest = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - largest));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}

const split = (x: Vector, headDim: number): Vector[] =>
  Array.from({ length: x.length / headDim }, (_, head) => x.slice(head * headDim, (head + 1) * headDim));

/**
 * The logits after each token of a text.
 *
 * @param stored The type that keys and values are rounded to, as a cache of that type rounds them; undefined: not at all.
 */
export function referenceLogits(tokens: readonly number[], weights: Weights, shape: Shape, stored?: DType): Vector[] {
  const { width, numQueryHeads, numKvHeads, headDim, rotaryBase } = shape;
  const keep = (head: Vector): Vector => (stored === undefined ? head : head.map((value) => round(value, stored)));
  let rows = tokens.map((token) => [...weights.embedding.subarray(token * width, (token + 1) * width)]);

  for (const layer of weights.layers) {
    const inputs = rows.map((x) => rmsNorm(x, layer.attentionNorm));
    const turn = (x: Vector, position: number) => split(x, headDim).map((head) => turned(head, position, rotaryBase));
    const queries = inputs.map((x, position) => turn(times(layer.query, x), position));
    const keys = inputs.map((x, position) => turn(times(layer.key, x), position).map(keep));
    const values = inputs.map((x) => split(times(layer.value, x), headDim).map(keep));

    rows = rows.map((x, position) => {
      const attended = queries[position].flatMap((query, head) => {
        const kvHead = Math.floor(head / (numQueryHeads / numKvHeads));
        const seen = keys.slice(0, position + 1);
        const scores = seen.map((key) => query.reduce((sum, q, i) => sum + q * key[kvHead][i], 0) / Math.sqrt(headDim));
        const probabilities = softmax(scores);
        return query.map((_, i) => probabilities.reduce((sum, p, token) => sum + p * values[token][kvHead][i], 0));
      });
      return plus(x, times(layer.output, attended));
    });

    rows = rows.map((x) => {
      const input = rmsNorm(x, layer.mlpNorm);
      const up = times(layer.up, input);
      const gated = times(layer.gate, input).map((gate, i) => (gate / (1 + Math.exp(-gate))) * up[i]);
      return plus(x, times(layer.down, gated));
    });
  }
  return rows.map((x) => plus(times(weights.logits, rmsNorm(x, weights.norm)), weights.bias));
}

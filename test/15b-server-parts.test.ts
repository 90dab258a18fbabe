// The parts of the example's server that decide something, one by one: what is sampled, what text is shown, which requests
// share a step, and who gives way.
import type { KvCache, Step } from 'lean-attention';
import { afterAll, afterEach, describe, expect, test } from 'vitest';
import { type ApiError, parseCompletion } from '../examples/server/api.mjs';
import { Batcher, type Job, type Outcome } from '../examples/server/batcher.mjs';
import { readConfig } from '../examples/server/config.mjs';
import { Counter, Gauge, Histogram, Metrics } from '../examples/server/prometheus.mjs';
import { greedy, sampler } from '../examples/server/sampling.mjs';
import { byteDecoder, encodeBytes, TextStream } from '../examples/server/text.mjs';
import { openDevice } from './helpers/library';
import { random } from './helpers/random';
import { parseMetrics } from './helpers/server';

const range = (from: number, count: number) => Array.from({ length: count }, (_, index) => from + index);

describe('sampling', () => {
  const logits = Float32Array.of(1, 3, 2, 3, -Infinity);

  test('temperature 0 takes the likeliest', () => {
    expect(greedy(logits)).toBe(1);
    expect(sampler(0, 5)(logits)).toBe(1);
  });

  test('otherwise tokens come as often as softmax says', () => {
    for (const temperature of [0.5, 1, 2]) {
      const sample = sampler(temperature, 1);
      const counts = new Array(5).fill(0);
      for (let i = 0; i < 20_000; ++i) counts[sample(logits)] += 1;
      const weights = [...logits].map((logit) => Math.exp(logit / temperature));
      const sum = weights.reduce((a, b) => a + b);
      for (const [token, weight] of weights.entries()) {
        expect(Math.abs(counts[token] / 20_000 - weight / sum), `token ${token}`).toBeLessThan(0.015);
      }
    }
  });

  test('a seed gives one series, wherever else is sampled', () => {
    const [one, other, third] = [sampler(1, 7), sampler(1, 7), sampler(1, 8)];
    const series = Array.from({ length: 50 }, () => [one(logits), other(logits), third(logits)]);
    expect(series.map(([token]) => token)).toEqual(series.map(([, token]) => token));
    expect(series.map(([token]) => token)).not.toEqual(series.map(([, , token]) => token));
  });

  test('logits of any size', () => {
    expect(sampler(0.01, 1)(Float32Array.of(-1e30, 3e38, 0))).toBe(1);
  });
});

describe('text', () => {
  const pieces = (text: TextStream, tokens: readonly number[]) => [
    ...tokens.map((token) => text.push(token)),
    text.end(),
  ];

  test('half a character waits for its other half', () => {
    expect(pieces(new TextStream(byteDecoder()), encodeBytes('aé€'))).toEqual(['a', '', 'é', '', '', '€', '']);
    expect(pieces(new TextStream(byteDecoder()), [0xe2, 0x82])).toEqual(['', '', '\ufffd']);
  });

  test('what may begin a stop string is held back', () => {
    const text = new TextStream(byteDecoder(), ['STOP', 'TOY']);
    expect(pieces(text, encodeBytes('aSTOxSTO'))).toEqual(['a', '', '', '', 'STOx', '', '', '', 'STO']);
    expect(text.stopped).toBe(false);
  });

  test('a stop string ends the text before it', () => {
    const text = new TextStream(byteDecoder(), ['STOP', 'TOY']);
    expect(pieces(text, encodeBytes('STTOYx'))).toEqual(['', '', 'ST', '', '', '', '']);
    expect(text.stopped).toBe(true);
  });

  test('whatever the text, it comes whole or up to the first stop', () => {
    const rng = random(1);
    for (let round = 0; round < 500; ++round) {
      const whole = Array.from({ length: rng.integer(0, 12) }, () => rng.pick(['a', 'b', 'é'])).join('');
      const stops = Array.from({ length: rng.integer(0, 3) }, () =>
        Array.from({ length: rng.integer(1, 3) }, () => rng.pick(['a', 'b', 'é'])).join(''),
      );
      // The first stop to be complete is what ends it.
      const ends = stops.filter((stop) => whole.includes(stop)).map((stop) => whole.indexOf(stop) + stop.length);
      const read = whole.slice(0, Math.min(...ends, Number.POSITIVE_INFINITY));
      const found = stops.filter((stop) => read.includes(stop)).map((stop) => read.indexOf(stop));
      const shown = pieces(new TextStream(byteDecoder(), stops), encodeBytes(whole)).join('');
      expect(shown, `${whole} ${stops}`).toBe(whole.slice(0, Math.min(...found, Number.POSITIVE_INFINITY)));
    }
  });
});

test('metrics are what Prometheus reads', () => {
  const metrics = new Metrics();
  const counter = metrics.add('requests_total', 'Requests', new Counter('kind', ['a', 'b']));
  const histogram = metrics.add('seconds', 'Time', new Histogram([0.1, 1]));
  metrics.add('pages', 'Pages', new Gauge(() => 3));
  counter.add(2, 'b');
  for (const seconds of [0.05, 0.1, 0.5, 7]) histogram.observe(seconds);
  expect([...parseMetrics(metrics.render())]).toEqual([
    ['requests_total{kind="a"}', 0],
    ['requests_total{kind="b"}', 2],
    ['seconds_bucket{le="0.1"}', 2],
    ['seconds_bucket{le="1"}', 3],
    ['seconds_bucket{le="+Inf"}', 4],
    ['seconds_sum', 7.65],
    ['seconds_count', 4],
    ['pages', 3],
  ]);
});

describe('configuration', () => {
  test('defaults, environment, flags', () => {
    expect(readConfig([], {})).toMatchObject({ port: 8000, host: '127.0.0.1', maxBatch: 32, dtype: 'f32' });
    expect(readConfig(['--max-batch', '3'], { SERVER_MAX_BATCH: '4', SERVER_DTYPE: 'bf16' })).toMatchObject({
      maxBatch: 3,
      dtype: 'bf16',
    });
    expect(readConfig(['--help'], {})).toMatch(/--max-queue +requests that wait/);
  });

  test.each([
    [['--port', '70000'], "Expected --port to be an integer from 0 to 65535, got '70000'"],
    [['--port', '-1'], /--port/],
    [['--max-batch', '1.5'], "Expected --max-batch to be an integer from 1 to 2147483647, got '1.5'"],
    [['--dtype', 'f64'], "Expected --dtype to be one of f32, f16, bf16, got 'f64'"],
    [['--max-batch', '8', '--max-rows', '8'], 'Expected --max-rows to be more than --max-batch 8, got 8'],
    [['--colour', 'red'], /--colour/],
  ])('%o is refused', (argv, message) => {
    expect(() => readConfig(argv, {})).toThrow(message);
  });
});

test('a request that leaves things out has them', () => {
  expect(parseCompletion({ prompt: 'a' }, 'm')).toEqual({
    prompt: 'a',
    maxTokens: 16,
    temperature: 1,
    seed: expect.any(Number),
    stop: [],
    stream: false,
  });
  expect(parseCompletion({ prompt: '', stop: 'x', max_tokens: null }, 'm')).toMatchObject({
    stop: ['x'],
    maxTokens: 16,
  });
});

describe('the batcher', () => {
  const device = openDevice('cpu', { threads: 1 });
  afterAll(() => device.dispose());

  const END = 99;
  /** What each step ran, by the lengths that its sequences had then: [first position, tokens] of each. */
  let steps: [number, number][][] = [];
  let cache: KvCache;
  let events: Outcome[] = [];
  let preempted = 0;
  /** Something to happen while a step runs. */
  let during: () => void = () => {};

  /** Counts: after token t comes t + 1. */
  const model = {
    name: 'counts',
    end: END,
    cacheShape: { layers: 1, numKvHeads: 1, headDim: 8 },
    encode: (text: string) => [...text].map(Number),
    decoder: byteDecoder,
    forward: async (tokens: Int32Array, step: Step, _cache: KvCache, wanted: readonly number[]) => {
      expect(tokens).toHaveLength(step.rows);
      const ran: [number, number][] = [];
      let row = 0;
      for (const count of step.counts) {
        const [position, token] = [step.positions[row], tokens[row]];
        // Texts count too: nothing was left out, and nothing came twice.
        expect([...tokens.subarray(row, row + count)]).toEqual(range(token, count));
        expect([...step.positions.subarray(row, row + count)]).toEqual(range(position, count));
        ran.push([position, count]);
        row += count;
      }
      steps.push(ran);
      during();
      await new Promise(setImmediate);
      return wanted.map((index) =>
        Float32Array.from({ length: 100 }, (_, token) => Number(token === tokens[index] + 1)),
      );
    },
  };

  function open(limits: { maxBatch?: number; maxRows?: number; maxQueue?: number; pages?: number } = {}) {
    const { pages = 64, ...rest } = limits;
    cache = device.createKvCache({ ...model.cacheShape, pageTokens: 4, tokens: 4 * pages });
    return new Batcher(
      model,
      cache,
      { maxBatch: 4, maxRows: 10, maxQueue: 4, maxContext: 60, ...rest },
      {
        onStep: () => cache.verify(),
        onOutcome: (outcome) => events.push(outcome),
        onPreempt: () => {
          preempted += 1;
        },
      },
    );
  }

  afterEach(() => {
    expect(cache.stats()).toMatchObject({ usedPages: 0, sequences: 0 });
    cache.dispose();
    [steps, events, preempted, during] = [[], [], 0, () => {}];
  });

  interface Request {
    tokens: number[];
    outcome: Promise<Outcome>;
    cancel: () => void;
    error?: unknown;
  }

  /** Asks for tokens after a prompt of `length`, which begins at `from`. */
  function ask(batcher: Batcher, length: number, maxTokens: number, from = 0, more: Partial<Job> = {}): Request {
    let end: (outcome: Outcome) => void = () => {};
    const outcome = new Promise<Outcome>((resolve) => {
      end = resolve;
    });
    const request: Request = { tokens: [], outcome, cancel: () => {} };
    const { cancel } = batcher.submit({
      prompt: range(from, length),
      maxTokens,
      sample: greedy,
      onToken: (token) => {
        request.tokens.push(token);
        return false;
      },
      onEnd: (how, error) => {
        request.error = error;
        end(how);
      },
      ...more,
    });
    request.cancel = cancel;
    return request;
  }

  test('prompts go in chunks, beside the tokens of those that generate', async () => {
    const batcher = open();
    const short = ask(batcher, 2, 6);
    const long = ask(batcher, 25, 2, 10);
    expect(await Promise.all([short.outcome, long.outcome])).toEqual(['length', 'length']);
    expect([short.tokens, long.tokens]).toEqual([range(2, 6), range(35, 2)]);
    expect(steps).toEqual([
      [
        [0, 2],
        [0, 8],
      ],
      [
        [2, 1],
        [8, 9],
      ],
      [
        [3, 1],
        [17, 8],
      ],
      [
        [4, 1],
        [25, 1],
      ],
      [[5, 1]],
      [[6, 1]],
    ]);
  });

  test('more requests than places wait for one', async () => {
    const batcher = open({ maxBatch: 2 });
    const requests = range(0, 6).map((from) => ask(batcher, 1, 3, from));
    expect(batcher.waiting).toBe(6);
    expect(() => ask(batcher, 1, 1)).toThrow(expect.objectContaining({ status: 429 }) as ApiError);
    await Promise.all(requests.map(({ outcome }) => outcome));
    expect(requests.map(({ tokens }) => tokens)).toEqual(range(0, 6).map((from) => range(from + 1, 3)));
    expect(Math.max(...steps.map((step) => step.length))).toBe(2);
  });

  test('the end token ends a text and is not shown; so does whoever listens', async () => {
    const batcher = open();
    const ended = ask(batcher, 1, 9, END - 3);
    const enough = ask(batcher, 1, 9, 0, { onToken: (token) => token === 4 });
    expect(await Promise.all([ended.outcome, enough.outcome])).toEqual(['stop', 'stop']);
    expect(ended.tokens).toEqual([END - 2, END - 1]);
  });

  test('when pages run out the youngest gives way, and goes on where it was', async () => {
    const batcher = open({ pages: 9 }); // each needs 6 in the end
    const requests = [ask(batcher, 3, 20), ask(batcher, 3, 20, 20), ask(batcher, 3, 20, 40)];
    const ended: number[] = [];
    for (const [index, { outcome }] of requests.entries()) void outcome.then(() => ended.push(index));
    await Promise.all(requests.map(({ outcome }) => outcome));
    expect(requests.map(({ tokens }) => tokens)).toEqual([range(3, 20), range(23, 20), range(43, 20)]);
    expect(ended).toEqual([0, 1, 2]);
    expect(preempted).toBe(2); // once each: whoever comes back finds room to grow
  });

  test('what can never fit is refused', () => {
    const batcher = open({ pages: 9 });
    expect(() => ask(batcher, 30, 7)).toThrow(expect.objectContaining({ status: 400 }) as ApiError);
    expect(() => ask(batcher, 1, 60)).toThrow(expect.objectContaining({ status: 400 }) as ApiError);
  });

  test('cancelled while it waits, between steps, and while a step runs', async () => {
    const batcher = open({ maxBatch: 2 });
    const requests = [ask(batcher, 1, 9), ask(batcher, 2, 9, 20), ask(batcher, 1, 9, 40)];
    requests[2].cancel();
    expect(batcher.waiting).toBe(2);
    during = () => {
      if (steps.length === 3) requests[1].cancel();
    };
    expect(await Promise.all(requests.map(({ outcome }) => outcome))).toEqual(['length', 'cancelled', 'cancelled']);
    expect(requests[0].tokens).toEqual(range(1, 9));
    expect(requests[1].tokens).toEqual(range(22, 2)); // none of the step under way
    requests[1].cancel(); // too late, and harmless
    expect(events).toEqual(['cancelled', 'cancelled', 'length']);
  });

  test('a step that fails takes its requests along, and no others', async () => {
    const batcher = open({ maxBatch: 2 });
    const requests = [ask(batcher, 1, 9), ask(batcher, 1, 9, 20), ask(batcher, 1, 3, 40)];
    during = () => {
      if (steps.length === 2) throw new Error('the device is gone');
    };
    expect(await Promise.all(requests.map(({ outcome }) => outcome))).toEqual(['failed', 'failed', 'length']);
    expect(requests[0].error).toMatchObject({ message: 'the device is gone' });
    expect(requests[2].tokens).toEqual(range(41, 3));
  });

  test('closing waits for all that are here and takes no more; aborting ends them', async () => {
    const batcher = open({ maxBatch: 1 });
    const requests = [ask(batcher, 1, 5), ask(batcher, 1, 5)];
    const closed = batcher.close();
    expect(() => ask(batcher, 1, 1)).toThrow(expect.objectContaining({ status: 503 }) as ApiError);
    await closed;
    expect(requests.map(({ tokens }) => tokens)).toEqual([range(1, 5), range(1, 5)]);

    cache.dispose();
    const other = open({ maxBatch: 1 });
    const more = [ask(other, 1, 50), ask(other, 1, 50)];
    during = () => other.abort(new Error('enough'));
    expect(await Promise.all(more.map(({ outcome }) => outcome))).toEqual(['failed', 'failed']);
    await other.close();
  });
});

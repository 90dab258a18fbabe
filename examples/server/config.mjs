// @ts-check
// Configuration: every option is a flag (--max-batch 16) and an environment variable (SERVER_MAX_BATCH=16); flags win.
import { parseArgs } from 'node:util';

/** A number's lowest and highest value, or the words that a string may be. @type {Record<string, Option>} */
const OPTIONS = {
  host: { value: '127.0.0.1', help: 'address to listen on' },
  port: { value: 8000, low: 0, high: 65535, help: 'port to listen on; 0 takes a free one' },
  device: { value: 'cpu', help: 'auto, cpu, cuda or cuda:N' },
  threads: { value: 0, low: 0, high: 1024, help: 'threads of a CPU device; 0: all processors' },
  dtype: { value: 'f32', words: ['f32', 'f16', 'bf16'], help: 'type of the cached keys and values' },
  strategy: {
    value: 'lean',
    words: ['lean', 'fixed-split', 'flash-attention-2'],
    help: 'how attention is cut into work; with flash-attention-2 no bit of a text depends on the rest of the batch',
  },
  'cache-tokens': { value: 32_768, low: 1, help: 'tokens that the cache holds, all sequences together' },
  'page-tokens': { value: 16, low: 1, help: 'tokens of a page' },
  'max-context': { value: 2048, low: 2, help: 'tokens of a prompt and its completion together' },
  'max-batch': { value: 32, low: 1, help: 'requests that run at once' },
  'max-rows': { value: 40, low: 2, help: 'tokens that go through the model in one step, more than max-batch' },
  'max-queue': { value: 64, low: 0, help: 'requests that wait; more are answered 429' },
  'max-body': { value: 1 << 20, low: 1, help: 'bytes of a request body' },
  'drain-seconds': { value: 30, low: 0, help: 'how long a shutdown waits for requests to finish' },
  'model-seed': { value: 1, low: 0, help: "seed of the toy model's weights" },
};

/** @typedef {{ value: string | number, help: string, low?: number, high?: number, words?: string[] }} Option */

/**
 * @typedef {object} Config
 * @property {string} host
 * @property {number} port
 * @property {'auto' | 'cpu' | 'cuda' | `cuda:${number}`} device
 * @property {number} threads
 * @property {'f32' | 'f16' | 'bf16'} dtype
 * @property {'lean' | 'fixed-split' | 'flash-attention-2'} strategy
 * @property {number} cacheTokens
 * @property {number} pageTokens
 * @property {number} maxContext
 * @property {number} maxBatch
 * @property {number} maxRows
 * @property {number} maxQueue
 * @property {number} maxBody
 * @property {number} drainSeconds
 * @property {number} modelSeed
 */

/** @param {string} name */
const variableOf = (name) => `SERVER_${name.toUpperCase().replaceAll('-', '_')}`;

/** @param {string} name @param {Option} option @param {string} text */
function parse(name, option, text) {
  if (typeof option.value === 'string') {
    if (option.words === undefined || option.words.includes(text)) return text;
    throw new RangeError(`Expected --${name} to be one of ${option.words.join(', ')}, got '${text}'`);
  }
  const { low = 0, high = 2 ** 31 - 1 } = option;
  const number = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (number >= low && number <= high) return number;
  throw new RangeError(`Expected --${name} to be an integer from ${low} to ${high}, got '${text}'`);
}

/**
 * @param {readonly string[]} argv
 * @param {Readonly<Record<string, string | undefined>>} environment
 * @returns {Config | string} The text of --help, when that was asked for.
 * @throws TypeError or RangeError with one sentence about what is wrong.
 */
export function readConfig(argv, environment) {
  /** @type {Record<string, { type: 'string' | 'boolean' }>} */
  const flags = { help: { type: 'boolean' } };
  for (const name of Object.keys(OPTIONS)) flags[name] = { type: 'string' };
  const { values } = parseArgs({ args: [...argv], options: flags });
  if (values.help) {
    const lines = Object.entries(OPTIONS).map(([name, { value, help }]) => {
      return `  --${name.padEnd(14)} ${help} (${value})`;
    });
    return ['node examples/server/main.mjs [--option value | SERVER_OPTION=value …]', '', ...lines].join('\n');
  }
  /** @type {Record<string, string | number>} */
  const config = {};
  for (const [name, option] of Object.entries(OPTIONS)) {
    const text = values[name] ?? environment[variableOf(name)];
    const key = name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase());
    config[key] = text === undefined ? option.value : parse(name, option, String(text));
  }
  if (config.maxRows <= config.maxBatch) {
    // Each running request takes a row a step: prompts need some of their own, or they would never be read.
    throw new RangeError(`Expected --max-rows to be more than --max-batch ${config.maxBatch}, got ${config.maxRows}`);
  }
  return /** @type {Config} */ (/** @type {unknown} */ (config));
}

// @ts-check
// The shapes of OpenAI's completions API: what a request may ask, what answers and errors look like.

/** Something that the client is told, as OpenAI's clients expect errors. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} code For programs: 'queue_full', 'context_length_exceeded', …
   * @param {string} message
   * @param {{ param?: string, headers?: Record<string, string> }} [more]
   */
  constructor(status, code, message, { param, headers = {} } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.headers = headers;
  }

  get body() {
    const type =
      this.status >= 500 ? 'server_error' : this.status === 429 ? 'rate_limit_error' : 'invalid_request_error';
    return { error: { message: this.message, type, param: this.param ?? null, code: this.code } };
  }
}

/**
 * @typedef {object} Completion
 * @property {string} prompt
 * @property {number} maxTokens
 * @property {number} temperature
 * @property {number} seed
 * @property {string[]} stop
 * @property {boolean} stream
 */

/**
 * The check of a field: it must be there or have a default, be of a type, and hold a condition.
 *
 * @param {Record<string, unknown>} body
 * @param {string} param
 * @param {unknown} otherwise Undefined: it must be there.
 * @param {string} expected In words.
 * @param {(value: unknown) => boolean} holds
 */
function field(body, param, otherwise, expected, holds) {
  const value = body[param] ?? otherwise;
  if (holds(value)) return value;
  const got = JSON.stringify(value) ?? 'nothing';
  const short = got.length > 40 ? `${got.slice(0, 40)}…` : got;
  throw new ApiError(400, 'invalid_value', `Expected \`${param}\` to be ${expected}, got ${short}`, { param });
}

/** @param {number} low @param {number} high @returns {(value: unknown) => boolean} */
const integer = (low, high) => (value) => Number.isSafeInteger(value) && Number(value) >= low && Number(value) <= high;

/** @param {unknown} value */
const isStop = (value) => typeof value === 'string' && value !== '';

/**
 * @param {unknown} body What JSON.parse returned.
 * @param {string} model The one that is served.
 * @returns {Completion}
 * @throws ApiError 400, or 404 for another model.
 */
export function parseCompletion(body, model) {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw new ApiError(400, 'invalid_body', 'Expected the body to be a JSON object');
  }
  const asked = /** @type {Record<string, unknown>} */ (body);
  const name = field(asked, 'model', model, 'a string', (value) => typeof value === 'string');
  if (name !== model) {
    throw new ApiError(404, 'model_not_found', `The model '${name}' is not here; '${model}' is`, { param: 'model' });
  }
  field(asked, 'n', 1, '1, the only number of choices that this server makes', (value) => value === 1);
  const stop = field(asked, 'stop', [], 'a string or a list of up to 4 strings, none of them empty', (value) =>
    Array.isArray(value) ? value.length <= 4 && value.every(isStop) : isStop(value),
  );
  return /** @type {Completion} */ ({
    prompt: field(asked, 'prompt', undefined, 'a string', (value) => typeof value === 'string'),
    maxTokens: field(asked, 'max_tokens', 16, 'an integer of at least 1', integer(1, 2 ** 31 - 1)),
    temperature: field(asked, 'temperature', 1, 'a number from 0 to 2', (value) => {
      return typeof value === 'number' && value >= 0 && value <= 2;
    }),
    seed: field(asked, 'seed', Math.floor(Math.random() * 2 ** 32), 'an integer', (value) =>
      Number.isSafeInteger(value),
    ),
    stop: Array.isArray(stop) ? stop : [stop],
    stream: field(asked, 'stream', false, 'true or false', (value) => typeof value === 'boolean'),
  });
}

/**
 * An answer, or a piece of one.
 *
 * @param {{ id: string, created: number, model: string }} head
 * @param {string} text
 * @param {'stop' | 'length' | null} finishReason
 */
export function completionBody(head, text, finishReason) {
  const choice = { text, index: 0, logprobs: null, finish_reason: finishReason };
  return { id: head.id, object: 'text_completion', created: head.created, model: head.model, choices: [choice] };
}

// @ts-check
// Continuous batching: requests come and go between steps, and each step runs all of them through the model together.
//
//   submit → waiting → running → ended          A step takes from every running request the tokens that the cache does
//              ↑          │                     not hold yet: one, which was sampled last, or a chunk of a prompt.
//              └──────────┘
//             preempted: the cache had no page left, and this request was the youngest. It keeps its tokens, and
//             later runs them through the model again.
//
// This loop alone appends to the cache, one step after another.
import { setImmediate } from 'node:timers/promises';
import { LeanAttentionError } from 'lean-attention';
import { ApiError } from './api.mjs';

/** @typedef {'stop' | 'length' | 'cancelled' | 'failed'} Outcome */

/**
 * What is asked for, and who is told.
 *
 * @typedef {object} Job
 * @property {readonly number[]} prompt
 * @property {number} maxTokens
 * @property {(logits: Float32Array) => number} sample
 * @property {(token: number) => boolean} onToken Returns true when it wants no more tokens.
 * @property {(outcome: Outcome, error?: unknown) => void} onEnd Called once.
 */

/**
 * @typedef {object} Request
 * @property {Job} job
 * @property {number[]} tokens The prompt and what was generated.
 * @property {import('lean-attention').Sequence | undefined} sequence What the cache holds of `tokens`, while running.
 * @property {boolean} inStep The step that is under way uses its sequence.
 * @property {Outcome | undefined} outcome
 */

/**
 * @typedef {object} Events What the batcher tells the metrics.
 * @property {(figures: { seconds: number, sequences: number, promptTokens: number, generated: number }) => void} onStep
 * @property {(outcome: Outcome) => void} onOutcome
 * @property {() => void} onPreempt
 */

export class Batcher {
  /** In order of arrival, as #running is, and all of #running came before. @type {Request[]} */
  #waiting = [];
  /** @type {Request[]} */
  #running = [];
  #turning = false;
  #closed = false;
  /** @type {(() => void)[]} */
  #onIdle = [];
  #model;
  #cache;
  #limits;
  #events;

  /**
   * @param {import('./model.mjs').Model} model
   * @param {import('lean-attention').KvCache} cache
   * @param {{ maxBatch: number, maxRows: number, maxQueue: number, maxContext: number }} limits
   * @param {Events} events
   */
  constructor(model, cache, limits, events) {
    this.#model = model;
    this.#cache = cache;
    this.#limits = limits;
    this.#events = events;
  }

  get running() {
    return this.#running.length;
  }

  get waiting() {
    return this.#waiting.length;
  }

  /**
   * @param {Job} job
   * @returns {{ cancel: () => void }}
   * @throws ApiError when the job can never fit, when there is no room to wait, or after close().
   */
  submit(job) {
    const { maxBatch, maxQueue, maxContext } = this.#limits;
    const longest = Math.min(maxContext, this.#cache.numPages * this.#cache.pageTokens);
    const length = job.prompt.length + job.maxTokens;
    if (length > longest) {
      const message = `Expected at most ${longest} tokens in prompt and completion, got ${job.prompt.length} + ${job.maxTokens}`;
      throw new ApiError(400, 'context_length_exceeded', message, { param: 'prompt' });
    }
    if (this.#closed) throw new ApiError(503, 'shutting_down', 'The server is shutting down');
    if (this.#running.length + this.#waiting.length >= maxBatch + maxQueue) {
      throw new ApiError(429, 'queue_full', 'All places are taken; try again later', {
        headers: { 'Retry-After': '1' },
      });
    }
    /** @type {Request} */
    const request = { job, tokens: [...job.prompt], sequence: undefined, inStep: false, outcome: undefined };
    this.#waiting.push(request);
    if (!this.#turning) void this.#turn();
    return { cancel: () => this.#end(request, 'cancelled') };
  }

  /** No more requests from here on. Resolves when those that are here have ended. */
  async close() {
    this.#closed = true;
    if (this.#turning) await new Promise((resolve) => this.#onIdle.push(() => resolve(undefined)));
  }

  /** Ends all requests now. @param {unknown} error */
  abort(error) {
    for (const request of [...this.#running, ...this.#waiting]) this.#end(request, 'failed', error);
  }

  async #turn() {
    this.#turning = true;
    while (this.#running.length + this.#waiting.length > 0) {
      await setImmediate(); // a full turn of the event loop: sockets are read, timers run, requests arrive together
      try {
        await this.#step();
      } catch (error) {
        // The step is lost, and with it what it ran. Those that wait get their chance, unless they are what failed.
        const lost = this.#running.length > 0 ? this.#running : this.#waiting;
        for (const request of [...lost]) this.#end(request, 'failed', error);
      }
    }
    this.#turning = false;
    for (const resolve of this.#onIdle.splice(0)) resolve();
  }

  async #step() {
    const begin = performance.now();
    this.#admit();
    const { batch, step } = this.#append();
    if (step === undefined) return; // all were cancelled
    /** @type {number[]} */
    const tokens = [];
    /** @type {{ request: Request, row: number }[]} Those whose tokens are all in, and where their last one is. */
    const ready = [];
    let promptTokens = 0;
    for (const { request, count } of batch) {
      const end = lengthOf(request); // with this step's tokens
      for (let at = end - count; at < end; ++at) tokens.push(request.tokens[at]);
      if (end === request.tokens.length) ready.push({ request, row: tokens.length - 1 });
      if (count > 1 || end <= request.job.prompt.length) promptTokens += count;
      request.inStep = true;
    }
    let generated = 0;
    try {
      const rows = ready.map(({ row }) => row);
      const logits = await this.#model.forward(Int32Array.from(tokens), step, this.#cache, rows);
      for (const [index, { request }] of ready.entries()) generated += this.#accept(request, logits[index]) ? 1 : 0;
    } finally {
      for (const { request } of batch) {
        request.inStep = false;
        if (request.outcome !== undefined) release(request); // it ended while the step ran
      }
    }
    const seconds = (performance.now() - begin) / 1000;
    this.#events.onStep({ seconds, sequences: batch.length, promptTokens, generated });
  }

  /** Lets waiting requests in, while there is a place and the pages for their tokens are free. */
  #admit() {
    /** @param {number} tokens */
    const pages = (tokens) => Math.ceil(tokens / this.#cache.pageTokens);
    /** Pages that a request still needs, and one to grow, or it might be out again at the next step. */
    const missing = (/** @type {Request} */ request) => pages(request.tokens.length) + 1 - pages(lengthOf(request));
    let free = this.#cache.stats().freePages;
    for (const request of this.#running) free -= missing(request);
    while (this.#waiting.length > 0 && this.#running.length < this.#limits.maxBatch) {
      const [request] = this.#waiting;
      free -= missing(request);
      if (free < 0 && this.#running.length > 0) return; // alone it fits: submit() saw to that
      request.sequence = this.#cache.createSequence();
      this.#running.push(request);
      this.#waiting.shift();
    }
  }

  /**
   * Makes room in the cache for this step's tokens. Preempts the youngest until there is.
   *
   * @returns {{ batch: { request: Request, count: number }[], step?: import('lean-attention').Step }}
   */
  #append() {
    for (;;) {
      const batch = this.#choose();
      if (batch.length === 0) return { batch };
      const sequences = batch.map(({ request }) => /** @type {import('lean-attention').Sequence} */ (request.sequence));
      const counts = batch.map(({ count }) => count);
      try {
        return { batch, step: this.#cache.append(sequences, counts) };
      } catch (error) {
        if (!(error instanceof LeanAttentionError && error.code === 'OUT_OF_PAGES')) throw error;
        const youngest = /** @type {Request} */ (this.#running.pop());
        release(youngest);
        this.#waiting.unshift(youngest);
        this.#events.onPreempt();
      }
    }
  }

  /** How many tokens of each request go into this step: those that generate first, prompts share what is left. */
  #choose() {
    let rows = this.#limits.maxRows;
    const pending = this.#running.map((request) => ({ request, count: request.tokens.length - lengthOf(request) }));
    const batch = [];
    for (const { request, count } of pending.sort((a, b) => Math.min(a.count, 2) - Math.min(b.count, 2))) {
      const taken = Math.min(count, rows);
      rows -= taken;
      if (taken > 0) batch.push({ request, count: taken });
    }
    return batch;
  }

  /**
   * Samples a request's next token and passes it on. True: there was one.
   *
   * @param {Request} request
   * @param {Float32Array} logits
   */
  #accept(request, logits) {
    const { job, tokens } = request;
    if (request.outcome !== undefined) return false; // cancelled while the step ran
    const token = job.sample(logits);
    if (token === this.#model.end) {
      this.#end(request, 'stop');
      return true;
    }
    tokens.push(token);
    if (job.onToken(token)) this.#end(request, 'stop');
    else if (tokens.length === job.prompt.length + job.maxTokens) this.#end(request, 'length');
    return true;
  }

  /**
   * @param {Request} request
   * @param {Outcome} outcome
   * @param {unknown} [error]
   */
  #end(request, outcome, error) {
    if (request.outcome !== undefined) return;
    request.outcome = outcome;
    this.#running = this.#running.filter((other) => other !== request);
    this.#waiting = this.#waiting.filter((other) => other !== request);
    if (!request.inStep) release(request); // else the step does, in a moment
    this.#events.onOutcome(outcome);
    request.job.onEnd(outcome, error);
  }
}

/** Tokens of a request that the cache holds. @param {Request} request */
const lengthOf = (request) => request.sequence?.length ?? 0;

/** Gives a request's pages back. @param {Request} request */
function release(request) {
  request.sequence?.free();
  request.sequence = undefined;
}

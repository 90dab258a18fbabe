// @ts-check
// The routes: requests are read and checked here, handed to the batcher, and answered as JSON or as server-sent events.
import { randomUUID } from 'node:crypto';
import { createServer } from 'node:http';
import { ApiError, completionBody, parseCompletion } from './api.mjs';
import { sampler } from './sampling.mjs';
import { TextStream } from './text.mjs';

/** @typedef {import('node:http').IncomingMessage} Incoming */
/** @typedef {import('node:http').ServerResponse} Response */

/**
 * @typedef {object} Parts
 * @property {import('./batcher.mjs').Batcher} batcher
 * @property {import('./model.mjs').Model} model
 * @property {{ render: () => string, onRefused: (status: number) => void }} metrics
 * @property {number} maxBody
 * @property {() => boolean} isStopping
 */

/** @param {Response} response @param {number} status @param {unknown} body @param {Record<string, string>} [headers] */
function answer(response, status, body, headers = {}) {
  const text = typeof body === 'string' ? body : `${JSON.stringify(body)}\n`;
  const type = typeof body === 'string' ? 'text/plain; version=0.0.4; charset=utf-8' : 'application/json';
  response.writeHead(status, { 'Content-Type': type, 'Content-Length': Buffer.byteLength(text), ...headers });
  response.end(text);
}

/** What a client is told of an error. What is not meant for it is logged. @param {unknown} error */
function asApiError(error) {
  if (error instanceof ApiError) return error;
  console.error(error);
  return new ApiError(500, 'internal_error', 'The server failed; it is not your request');
}

/** @param {Incoming} request @param {number} maxBytes @returns {Promise<unknown>} */
async function readJson(request, maxBytes) {
  const chunks = [];
  let bytes = 0;
  for await (const chunk of request) {
    bytes += chunk.length;
    if (bytes <= maxBytes) chunks.push(chunk); // the rest is read and dropped: a client that sends does not listen yet
  }
  if (bytes > maxBytes) {
    throw new ApiError(413, 'body_too_large', `Expected a body of at most ${maxBytes} bytes, got ${bytes}`);
  }
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(Buffer.concat(chunks)));
  } catch {
    throw new ApiError(400, 'invalid_json', 'Expected the body to be JSON in UTF-8');
  }
}

/** @param {Parts} parts @param {Incoming} request @param {Response} response */
async function complete({ batcher, model, maxBody }, request, response) {
  const asked = parseCompletion(await readJson(request, maxBody), model.name);
  if (response.destroyed) return; // gone already
  const head = { id: `cmpl-${randomUUID()}`, created: Math.floor(Date.now() / 1000), model: model.name };
  const text = new TextStream(model.decoder(), asked.stop);
  const prompt = model.encode(asked.prompt);
  let written = '';
  let generated = 0;

  /** @param {string} piece @param {'stop' | 'length' | null} finishReason */
  const show = (piece, finishReason) => {
    written += piece;
    if (!asked.stream || (piece === '' && finishReason === null)) return;
    // A client that reads slowly is buffered for: max-context bounds by how much.
    response.write(`data: ${JSON.stringify(completionBody(head, piece, finishReason))}\n\n`);
  };

  const { cancel } = batcher.submit({
    prompt,
    maxTokens: asked.maxTokens,
    sample: sampler(asked.temperature, asked.seed),
    onToken: (token) => {
      generated += 1;
      show(text.push(token), null);
      return text.stopped;
    },
    onEnd: (outcome, error) => {
      if (outcome === 'cancelled') return;
      if (outcome === 'failed') {
        const { status, body, headers } = asApiError(error);
        if (asked.stream) response.end(`data: ${JSON.stringify(body)}\n\n`);
        else answer(response, status, body, headers);
        return;
      }
      show(text.end(), text.stopped ? 'stop' : outcome);
      const usage = {
        prompt_tokens: prompt.length,
        completion_tokens: generated,
        total_tokens: prompt.length + generated,
      };
      if (asked.stream) response.end('data: [DONE]\n\n');
      else answer(response, 200, { ...completionBody(head, written, text.stopped ? 'stop' : outcome), usage });
    },
  });
  response.on('close', cancel); // the client went, or has its answer, and then this does nothing
  if (asked.stream) {
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache' });
    response.flushHeaders();
  }
}

/** What each path answers, by method. @type {Record<string, Record<string, (parts: Parts, request: Incoming, response: Response) => unknown>>} */
const ROUTES = {
  '/v1/completions': { POST: complete },
  '/v1/models': {
    GET: ({ model }, _request, response) =>
      answer(response, 200, {
        object: 'list',
        data: [{ id: model.name, object: 'model', created: 0, owned_by: 'lean-attention' }],
      }),
  },
  '/health': {
    GET: ({ isStopping }, _request, response) =>
      isStopping() ? answer(response, 503, { status: 'stopping' }) : answer(response, 200, { status: 'ok' }),
  },
  '/metrics': { GET: ({ metrics }, _request, response) => answer(response, 200, metrics.render()) },
};

/** @param {Parts} parts */
export function createHttpServer(parts) {
  return createServer({ requestTimeout: 30_000 }, async (request, response) => {
    response.on('error', () => {}); // a client that goes while it is written to is nobody's error
    try {
      const path = (request.url ?? '/').split('?')[0];
      const methods = Object.hasOwn(ROUTES, path) ? ROUTES[path] : undefined;
      if (methods === undefined) throw new ApiError(404, 'not_found', `There is nothing at ${path}`);
      const method = request.method ?? '';
      if (!Object.hasOwn(methods, method)) {
        const headers = { Allow: Object.keys(methods).join(', ') };
        throw new ApiError(405, 'method_not_allowed', `${path} does not take ${method}`, { headers });
      }
      await methods[method](parts, request, response);
    } catch (error) {
      if (response.destroyed || response.headersSent) return;
      const { status, body, headers } = asApiError(error);
      parts.metrics.onRefused(status);
      answer(response, status, body, parts.isStopping() ? { ...headers, Connection: 'close' } : headers);
    }
  });
}

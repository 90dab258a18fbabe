// The example's server, end to end: a process of its own, spoken to over HTTP as clients do.
import { connect } from 'node:net';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { type Completion, killServers, runExample, type Server, startServer } from './helpers/server';

/** Greedy text of this model does not end by itself before that: for requests that must last. */
const LONG = { prompt: 'A long story', max_tokens: 1900, temperature: 0 };

/** Attention uncut: its results do not depend, even in the last bit, on who else is in a batch. */
const EXACT = ['--strategy', 'flash-attention-2'];

const prompts = Array.from({ length: 12 }, (_, index) => `${'Once upon a time. '.repeat(index)}${index}`);
const asked = (index: number): Completion => ({ prompt: prompts[index], max_tokens: 30 + index, seed: index });

/** Reads events until there are some tokens; then the client is gone. */
async function leaveAfter(server: Server, body: Completion, tokens: number): Promise<void> {
  const client = new AbortController();
  let seen = 0;
  for await (const _ of server.events(body, client.signal)) if (++seen === tokens) break;
  client.abort();
}

afterAll(killServers);

describe('completions', () => {
  let server: Server;
  beforeAll(async () => {
    server = await startServer(EXACT);
  });
  afterAll(() => server.stop());

  test('an answer', async () => {
    const { status, headers, body } = await server.complete({ prompt: 'Hello', max_tokens: 12, seed: 1 });
    expect(status).toBe(200);
    expect(headers.get('content-type')).toBe('application/json');
    expect(body).toMatchObject({
      object: 'text_completion',
      model: 'toy-1',
      choices: [{ index: 0, logprobs: null, finish_reason: 'length' }],
      usage: { prompt_tokens: 6, completion_tokens: 12, total_tokens: 18 },
    });
    expect(body.choices[0].text).toHaveLength(12);
    expect(body.id).toMatch(/^cmpl-/);
  });

  test('a stream has the text of the answer, token by token', async () => {
    const { body } = await server.complete(asked(3));
    const streamed = await server.stream(asked(3));
    expect(streamed.text).toBe(body.choices[0].text);
    expect(streamed.reason).toBe('length');
    expect(streamed.pieces).toBe(34); // 33 tokens, and the reason why there are no more
  });

  test('events are what OpenAI sends', async () => {
    const response = await server.post({ prompt: '', max_tokens: 2, stream: true, temperature: 0 });
    expect(response.headers.get('content-type')).toBe('text/event-stream');
    const lines = (await response.text()).split('\n\n');
    expect(lines.slice(-2)).toEqual(['data: [DONE]', '']);
    for (const line of lines.slice(0, -2)) {
      expect(JSON.parse(line.slice('data: '.length))).toMatchObject({
        object: 'text_completion',
        choices: [{ index: 0, text: expect.any(String) }],
      });
    }
  });

  test('the same seed gives the same text, another another', async () => {
    const text = async (seed: number) => (await server.complete({ ...asked(5), seed })).body.choices[0].text;
    expect(await text(1)).toBe(await text(1));
    expect(await text(1)).not.toBe(await text(2));
  });

  test('in a batch each has the text that it has alone', async () => {
    const alone = [];
    for (const index of prompts.keys()) alone.push((await server.stream(asked(index))).text);
    const together = await Promise.all(prompts.map((_, index) => server.stream(asked(index))));
    expect(together.map(({ text }) => text)).toEqual(alone);
    expect(await server.metric('server_batch_size_bucket{le="8"}')).toBeLessThan(
      await server.metric('server_batch_size_count'), // more than 8 did run at once
    );
  });

  test('a stop string ends a text, and is not in it', async () => {
    const whole = (await server.complete(asked(1))).body.choices[0].text;
    const stop = whole.slice(10, 13);
    const expected = whole.slice(0, whole.indexOf(stop));
    for (const value of [stop, ['never to be seen', stop]]) {
      const { body } = await server.complete({ ...asked(1), stop: value });
      expect(body.choices[0]).toMatchObject({ text: expected, finish_reason: 'stop' });
      expect(await server.stream({ ...asked(1), stop: value })).toMatchObject({ text: expected, reason: 'stop' });
    }
  });

  test('models and health', async () => {
    const models = await (await fetch(`${server.url}/v1/models`)).json();
    expect(models).toMatchObject({ object: 'list', data: [{ id: 'toy-1', object: 'model' }] });
    expect(await (await fetch(`${server.url}/health`)).json()).toEqual({ status: 'ok' });
  });

  test('a client that goes has its pages freed', async () => {
    const cancelled = await server.metric('server_requests_total{outcome="cancelled"}');
    await Promise.all([1, 5, 9].map((tokens) => leaveAfter(server, LONG, tokens)));
    await server.until('server_requests_total{outcome="cancelled"}', (count) => count === cancelled + 3);
    await server.until('server_pages_used', (pages) => pages === 0);
  });

  test('metrics', async () => {
    const before = await server.metrics();
    await server.complete({ prompt: 'abc', max_tokens: 7, temperature: 0 });
    const after = await server.metrics();
    const grown = (name: string) => (after.get(name) as number) - (before.get(name) as number);
    expect(grown('server_prompt_tokens_total')).toBe(4);
    expect(grown('server_generated_tokens_total')).toBe(7);
    expect(grown('server_steps_total')).toBe(7);
    expect(grown('server_step_seconds_count')).toBe(7);
    expect(grown('server_batch_size_sum')).toBe(7);
    expect(grown('server_requests_total{outcome="length"}')).toBe(1);
    expect(after.get('server_step_seconds_bucket{le="+Inf"}')).toBe(after.get('server_step_seconds_count'));
    expect(after.get('server_queue_length')).toBe(0);
    expect(after.get('server_running_requests')).toBe(0);
    expect(after.get('server_pages_used')).toBe(0);
    expect(after.get('server_pages_free')).toBe(2048);
    expect(after.get('server_event_loop_delay_seconds{quantile="0.99"}')).toBeGreaterThanOrEqual(0);
    expect(after.get('process_resident_memory_bytes')).toBeGreaterThan(1e7);
  });

  describe('what is wrong is said', () => {
    const LIMIT = 1 << 20;
    test.each<[string, Completion | string | Uint8Array, number, string | null]>([
      ['no JSON', '{"prompt": "a', 400, null],
      ['nothing', '', 400, null],
      ['no UTF-8', Uint8Array.of(0x22, 0xff, 0x22), 400, null],
      ['a list', '[]', 400, null],
      ['null', 'null', 400, null],
      ['no prompt', {}, 400, 'prompt'],
      ['a prompt of tokens', { prompt: [1, 2] }, 400, 'prompt'],
      ['no tokens', { prompt: 'a', max_tokens: 0 }, 400, 'max_tokens'],
      ['half a token', { prompt: 'a', max_tokens: 1.5 }, 400, 'max_tokens'],
      ['words for a number', { prompt: 'a', max_tokens: '5' }, 400, 'max_tokens'],
      ['too hot', { prompt: 'a', temperature: 2.5 }, 400, 'temperature'],
      ['too cold', { prompt: 'a', temperature: -1 }, 400, 'temperature'],
      ['a seed of letters', { prompt: 'a', seed: 'x' }, 400, 'seed'],
      ['an empty stop', { prompt: 'a', stop: '' }, 400, 'stop'],
      ['too many stops', { prompt: 'a', stop: ['a', 'b', 'c', 'd', 'e'] }, 400, 'stop'],
      ['stream maybe', { prompt: 'a', stream: 'yes' }, 400, 'stream'],
      ['two choices', { prompt: 'a', n: 2 }, 400, 'n'],
      ['another model', { prompt: 'a', model: 'gpt-4' }, 404, 'model'],
      ['more than the context', { prompt: 'a'.repeat(2000), max_tokens: 100 }, 400, 'prompt'],
      ['a body too large', `{"prompt": "${'a'.repeat(LIMIT)}"}`, 413, null],
    ])('%s', async (_, sent, expected, param) => {
      const { status, body } = await server.complete(sent);
      expect({ status, ...body.error }).toEqual({
        status: expected,
        type: 'invalid_request_error',
        code: expect.stringMatching(/^[a-z_]+$/),
        message: expect.stringMatching(/^[A-Z].{10,}[^.]$/),
        param,
      });
    });

    test('places that are not there, and methods', async () => {
      expect((await fetch(`${server.url}/v1/chat`)).status).toBe(404);
      expect((await fetch(`${server.url}/constructor`)).status).toBe(404);
      const got = await fetch(`${server.url}/v1/completions`);
      expect([got.status, got.headers.get('allow')]).toEqual([405, 'POST']);
      expect((await fetch(`${server.url}/health`, { method: 'DELETE' })).status).toBe(405);
    });

    test('half a request and no more', async () => {
      const { port } = new URL(server.url);
      await new Promise<void>((resolve) => {
        const socket = connect(Number(port), '127.0.0.1', () => {
          socket.write('POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"prompt"');
          setTimeout(() => socket.destroy(), 30);
        });
        socket.on('close', () => resolve());
      });
      expect((await server.complete({ prompt: 'a', max_tokens: 1 })).status).toBe(200);
      expect(server.errors).toBe('');
    });
  });
});

test('a full queue answers 429, and has room again when one goes', async () => {
  const server = await startServer(['--max-batch', '1', '--max-queue', '2', '--max-context', '30000']);
  const long = { ...LONG, max_tokens: 15_000 }; // nobody gets to its end
  const clients = [new AbortController(), new AbortController(), new AbortController()];
  const streams = clients.map(({ signal }) => server.post({ ...long, stream: true }, signal));
  for (const { status } of await Promise.all(streams)) expect(status).toBe(200);
  const { status, headers, body } = await server.complete(long);
  expect([status, body.error.type, body.error.code]).toEqual([429, 'rate_limit_error', 'queue_full']);
  expect(Number(headers.get('retry-after'))).toBeGreaterThan(0);
  expect(await server.metric('server_queue_length')).toBe(2);
  expect(await server.metric('server_requests_total{outcome="refused"}')).toBe(1);

  clients[2].abort(); // one that waits
  await server.until('server_queue_length', (length) => length === 1);
  clients[0].abort(); // the one that runs
  clients[1].abort();
  expect((await server.complete({ prompt: 'a', max_tokens: 2 })).status).toBe(200);
  expect(await server.metric('server_requests_total{outcome="cancelled"}')).toBe(3);
  expect(await server.stop()).toBe(0);
});

test.each(['f32', 'f16'])('when pages run out the youngest wait, and all get their text (%s)', async (dtype) => {
  const flags = [...EXACT, '--dtype', dtype, '--page-tokens', '4'];
  const roomy = await startServer(flags);
  const alone = await Promise.all(prompts.map((_, index) => roomy.stream(asked(index))));
  expect(await roomy.metric('server_preemptions_total')).toBe(0);
  expect(await roomy.stop()).toBe(0);

  const tight = await startServer([...flags, '--cache-tokens', '300']); // the longest alone needs 240
  const together = await Promise.all(prompts.map((_, index) => tight.stream(asked(index))));
  expect(together).toEqual(alone);
  expect(await tight.metric('server_preemptions_total')).toBeGreaterThan(0);
  expect(await tight.metric('server_pages_used')).toBe(0);
  const { status, body } = await tight.complete({ prompt: 'a'.repeat(250), max_tokens: 50 });
  expect([status, body.error.code]).toEqual([400, 'context_length_exceeded']); // it could never fit
  expect(await tight.stop()).toBe(0);
});

describe('shutdown', () => {
  test.each(['SIGTERM', 'SIGINT'] as const)('%s: running requests finish, no more come in', async (signal) => {
    const server = await startServer();
    const asked = { ...LONG, max_tokens: 300 };
    const expected = await server.stream(asked);
    const running = server.stream(asked);
    await server.until('server_running_requests', (count) => count === 1);
    server.signal(signal);
    expect(await running).toEqual(expected);
    expect(await server.exited).toBe(0);
    expect(server.errors).toBe('');
    await expect(server.complete(LONG)).rejects.toThrow();
  });

  test('at the deadline those that still run are told', async () => {
    const server = await startServer(['--drain-seconds', '0']);
    const running = server.events({ ...LONG, max_tokens: 2000 });
    await running.next();
    server.signal('SIGTERM');
    let last = '';
    for await (const event of running) last = event;
    expect(JSON.parse(last)).toMatchObject({ error: { type: 'server_error', code: 'shutting_down' } });
    expect(await server.exited).toBe(0);
  });
});

describe('configuration', () => {
  test('comes from the environment, and flags win', async () => {
    const server = await startServer(['--max-context', '100'], { SERVER_MAX_CONTEXT: '50', SERVER_MODEL_SEED: '9' });
    expect((await server.complete({ prompt: 'a', max_tokens: 90, model: 'toy-9' })).status).toBe(200);
    expect((await server.complete({ prompt: 'a', max_tokens: 99 })).status).toBe(400);
    expect(await server.stop()).toBe(0);
  });

  test('what keeps it from starting is one sentence', async () => {
    const server = await startServer();
    const taken = await runExample('main.mjs', ['--port', new URL(server.url).port]);
    expect(taken).toMatchObject({ code: 1, errors: expect.stringMatching(/^listen EADDRINUSE[^\n]*\n$/) });
    expect(await server.stop()).toBe(0);
    const wrong = await runExample('main.mjs', ['--max-batch', 'no']);
    expect(wrong.code).toBe(2);
    expect(wrong.errors).toBe("Expected --max-batch to be an integer from 1 to 2147483647, got 'no'\n");
    const huge = await runExample('main.mjs', ['--cache-tokens', '2000000000', '--page-tokens', '1000']);
    expect(huge).toMatchObject({ code: 2, errors: expect.stringMatching(/^[A-Z][^\n]*\n$/) });
  });
});

test('under load for a while no page gets lost', async () => {
  const clients = ['--steps', '400', '--clients', '20', '--json'];
  const { code, output } = await runExample('load.mjs', [
    ...clients,
    '--',
    '--cache-tokens',
    '1600',
    '--page-tokens',
    '4',
  ]);
  const report = JSON.parse(output);
  expect(report).toMatchObject({ pagesLost: 0, stillBusy: false, failed: 0, serverExitCode: 0, wrong: [] });
  expect(code).toBe(0);
  expect(report.steps).toBeGreaterThanOrEqual(400);
  expect(report.preemptions).toBeGreaterThan(0);
});

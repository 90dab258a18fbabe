// @ts-check
// What the server counts, and the page at /metrics that shows it.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { Counter, Gauge, Histogram, Metrics } from './prometheus.mjs';

const SECONDS = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
const REQUESTS = [1, 2, 4, 8, 16, 32, 64, 128];
const OUTCOMES = ['stop', 'length', 'cancelled', 'failed', 'refused', 'invalid'];

/** The event loop's delay is measured from tick to tick of a timer: what is beyond the timer's period is delay. */
const PERIOD_MS = 1;

/**
 * @param {() => { running: number, waiting: number, usedPages: number, freePages: number }} read The state now.
 */
export function createMetrics(read) {
  const metrics = new Metrics();
  const steps = metrics.add('server_steps_total', 'Steps through the model', new Counter());
  const generated = metrics.add('server_generated_tokens_total', 'Tokens sampled', new Counter());
  const promptTokens = metrics.add(
    'server_prompt_tokens_total',
    'Tokens read before one was sampled; those of preempted requests again',
    new Counter(),
  );
  const requests = metrics.add(
    'server_requests_total',
    'Requests by how they ended; refused: queue full or shutting down',
    new Counter('outcome', OUTCOMES),
  );
  const preemptions = metrics.add('server_preemptions_total', 'Requests put back for want of pages', new Counter());
  const batchSize = metrics.add('server_batch_size', 'Requests in a step', new Histogram(REQUESTS));
  const stepSeconds = metrics.add('server_step_seconds', 'Duration of a step', new Histogram(SECONDS));
  metrics.add('server_running_requests', 'Requests that run', new Gauge(() => read().running));
  metrics.add('server_queue_length', 'Requests that wait', new Gauge(() => read().waiting));
  metrics.add('server_pages_used', 'Pages of the cache in use', new Gauge(() => read().usedPages));
  metrics.add('server_pages_free', 'Pages of the cache that are free', new Gauge(() => read().freePages));

  const delay = monitorEventLoopDelay({ resolution: PERIOD_MS });
  delay.enable();
  /** @param {number} nanoseconds */
  const beyond = (nanoseconds) => Math.max(0, nanoseconds / 1e6 - PERIOD_MS) / 1000;
  metrics.add(
    'server_event_loop_delay_seconds',
    'How late the event loop was, since the start',
    new Gauge(() => [
      [{ quantile: 0.5 }, beyond(delay.percentile(50))],
      [{ quantile: 0.99 }, beyond(delay.percentile(99))],
      [{ quantile: 1 }, beyond(delay.max)],
    ]),
  );
  metrics.add('process_resident_memory_bytes', 'Resident memory', new Gauge(() => process.memoryUsage.rss()));

  return {
    render: () => metrics.render(),
    /** An answer with an error status, before anything ran. @param {number} status */
    onRefused: (status) => {
      const refused = status === 429 || status === 503;
      requests.add(1, refused ? 'refused' : status < 500 ? 'invalid' : 'failed');
    },
    /** @type {import('./batcher.mjs').Events} */
    events: {
      onStep: (figures) => {
        steps.add();
        stepSeconds.observe(figures.seconds);
        batchSize.observe(figures.sequences);
        promptTokens.add(figures.promptTokens);
        generated.add(figures.generated);
      },
      onOutcome: (outcome) => requests.add(1, outcome),
      onPreempt: () => preemptions.add(),
    },
  };
}

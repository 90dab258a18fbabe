// @ts-check
// Counters, gauges and histograms in Prometheus' text format, and nothing else of it.

/** @param {Readonly<Record<string, string | number>>} labels */
const braces = (labels) => {
  const list = Object.entries(labels).map(([name, value]) => `${name}="${value}"`); // our own values: none needs escaping
  return list.length === 0 ? '' : `{${list.join(',')}}`;
};

/** A number that grows, or one for each value of a label. */
export class Counter {
  type = 'counter';
  #label;
  /** @type {Map<string, number>} */
  #values;

  /** @param {string} [label] @param {readonly string[]} [values] Shown from the start, so that rates need no first event. */
  constructor(label = '', values = ['']) {
    this.#label = label;
    this.#values = new Map(values.map((value) => [value, 0]));
  }

  /** @param {number} [amount] @param {string} [value] */
  add(amount = 1, value = '') {
    this.#values.set(value, (this.#values.get(value) ?? 0) + amount);
  }

  /** @param {string} name @returns {string[]} */
  lines(name) {
    return [...this.#values].map(
      ([value, count]) => `${name}${braces(this.#label === '' ? {} : { [this.#label]: value })} ${count}`,
    );
  }
}

/** A number, or one for each set of labels, read when it is asked for. */
export class Gauge {
  type = 'gauge';
  #read;

  /** @param {() => number | [Record<string, string | number>, number][]} read */
  constructor(read) {
    this.#read = read;
  }

  /** @param {string} name @returns {string[]} */
  lines(name) {
    const read = this.#read();
    if (typeof read === 'number') return [`${name} ${read}`];
    return read.map(([labels, value]) => `${name}${braces(labels)} ${value}`);
  }
}

export class Histogram {
  type = 'histogram';
  #bounds;
  #counts;
  #sum = 0;

  /** @param {readonly number[]} bounds Ascending. */
  constructor(bounds) {
    this.#bounds = bounds;
    this.#counts = new Array(bounds.length + 1).fill(0);
  }

  /** @param {number} value */
  observe(value) {
    const bucket = this.#bounds.findIndex((bound) => value <= bound);
    this.#counts[bucket === -1 ? this.#bounds.length : bucket] += 1;
    this.#sum += value;
  }

  /** @param {string} name @returns {string[]} */
  lines(name) {
    let total = 0;
    const buckets = this.#counts.map((count, index) => {
      total += count;
      return `${name}_bucket${braces({ le: this.#bounds[index] ?? '+Inf' })} ${total}`;
    });
    return [...buckets, `${name}_sum ${this.#sum}`, `${name}_count ${total}`];
  }
}

/** Named metrics, in the order in which they were added. */
export class Metrics {
  /** @type {Map<string, { help: string, metric: Counter | Gauge | Histogram }>} */
  #metrics = new Map();

  /**
   * @template {Counter | Gauge | Histogram} M
   * @param {string} name
   * @param {string} help
   * @param {M} metric
   */
  add(name, help, metric) {
    this.#metrics.set(name, { help, metric });
    return metric;
  }

  /** The page that Prometheus reads. */
  render() {
    const lines = [...this.#metrics].flatMap(([name, { help, metric }]) => [
      `# HELP ${name} ${help}`,
      `# TYPE ${name} ${metric.type}`,
      ...metric.lines(name),
    ]);
    return `${lines.join('\n')}\n`;
  }
}

// Checks of what callers pass: one sentence that names the argument, what was expected and what was found.

/** A value as a sentence shows it: short, and telling types apart. */
export function describe(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value === 'string') return `'${value.length > 40 ? `${value.slice(0, 40)}…` : value}'`;
  if (typeof value === 'number' || typeof value === 'boolean' || typeof value === 'undefined') return String(value);
  if (typeof value === 'bigint') return `${value}n`;
  if (Array.isArray(value)) return 'an array';
  if (typeof value === 'object') return `a ${Object.prototype.toString.call(value).slice(8, -1)}`;
  return `a ${typeof value}`;
}

export function expectInteger(name: string, value: unknown, low: number, high = Number.MAX_SAFE_INTEGER): number {
  if (typeof value !== 'number') throw new TypeError(`Expected \`${name}\` to be a number, got ${describe(value)}`);
  if (!Number.isSafeInteger(value) || value < low || value > high) {
    const range = high === Number.MAX_SAFE_INTEGER ? `of at least ${low}` : `from ${low} to ${high}`;
    throw new RangeError(`Expected \`${name}\` to be an integer ${range}, got ${value}`);
  }
  return value;
}

/** A copy of a list of integers. Holes are refused, which map() would pass by. */
export function expectIntegers(name: string, values: unknown, low: number, high?: number): number[] {
  if (!Array.isArray(values)) throw new TypeError(`Expected \`${name}\` to be an array, got ${describe(values)}`);
  return Array.from(values, (value, index) => expectInteger(`${name}[${index}]`, value, low, high));
}

export function expectObject(name: string, value: unknown): void {
  if (typeof value !== 'object' || value === null) {
    throw new TypeError(`Expected \`${name}\` to be an object, got ${describe(value)}`);
  }
}

export function expectOneOf<T extends string>(name: string, value: unknown, choices: readonly T[]): T {
  if (!choices.includes(value as T)) {
    const list = choices.map((choice) => `'${choice}'`).join(', ');
    const message = `Expected \`${name}\` to be one of ${list}, got ${describe(value)}`;
    throw typeof value === 'string' ? new RangeError(message) : new TypeError(message);
  }
  return value as T;
}

/** A finite number above `low`. */
export function expectNumber(name: string, value: unknown, low: number): number {
  if (typeof value !== 'number') throw new TypeError(`Expected \`${name}\` to be a number, got ${describe(value)}`);
  if (!(Number.isFinite(value) && value > low)) {
    throw new RangeError(`Expected \`${name}\` to be a finite number above ${low}, got ${value}`);
  }
  return value;
}

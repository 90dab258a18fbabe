// @ts-check
// Between text and tokens. The toy's tokens are bytes, so half a character may be all there is yet; and a stop string may
// be half written: both are held back until it is known what they become.

/** @param {string} text @returns {number[]} */
export const encodeBytes = (text) => [...new TextEncoder().encode(text)];

/**
 * Turns tokens into text, one by one.
 *
 * @typedef {object} Decoder
 * @property {(token: number) => string} push What is certain by now.
 * @property {() => string} end What is left when there are no more tokens.
 */

/** @returns {Decoder} */
export function byteDecoder() {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  return { push: (token) => decoder.decode(Uint8Array.of(token), { stream: true }), end: () => decoder.decode() };
}

/**
 * Text of one request as it grows. Stop strings end it and are not part of it.
 */
export class TextStream {
  #decoder;
  #stops;
  #held = '';
  /** A stop string was found: nothing comes after it. */
  stopped = false;

  /** @param {Decoder} decoder @param {readonly string[]} [stops] */
  constructor(decoder, stops = []) {
    this.#decoder = decoder;
    this.#stops = stops;
  }

  /**
   * Takes a token; returns what can be shown of it, and of what was held back.
   *
   * @param {number} token
   */
  push(token) {
    return this.#take(this.#decoder.push(token));
  }

  /** What is still held when there are no more tokens. */
  end() {
    const text = this.#take(this.#decoder.end()) + this.#held;
    this.#held = '';
    return text;
  }

  /** @param {string} text */
  #take(text) {
    if (this.stopped) return '';
    this.#held += text;
    const found = this.#stops.map((stop) => this.#held.indexOf(stop)).filter((index) => index >= 0);
    this.stopped = found.length > 0;
    const keep = this.stopped ? 0 : this.#unsure();
    const shown = this.#held.slice(0, this.stopped ? Math.min(...found) : this.#held.length - keep);
    this.#held = this.#held.slice(this.#held.length - keep);
    return shown;
  }

  /** Characters at the end which may be the beginning of a stop string. */
  #unsure() {
    let longest = 0;
    for (const stop of this.#stops) {
      for (let length = Math.min(stop.length - 1, this.#held.length); length > longest; --length) {
        if (this.#held.endsWith(stop.slice(0, length))) longest = length;
      }
    }
    return longest;
  }
}

// Is a picture something that a strict parser takes?
import { expect } from 'vitest';

/** Tags opened and closed in order, attributes quoted, no bare ampersand: what a strict parser asks for. */
export function expectWellFormed(svg: string): void {
  expect(svg).toMatch(/^<svg [^>]*xmlns="http:\/\/www\.w3\.org\/2000\/svg"/);
  expect(svg).not.toMatch(/&(?!(amp|lt|gt|quot|apos);)|NaN|undefined|Infinity/);
  const open: string[] = [];
  const rest = svg.replace(
    /<(\/?)([a-z]+)((?: [\w:-]+="[^"<]*")*)(\/?)>/gi,
    (_tag, closing, name, _attributes, empty) => {
      if (closing) expect(open.pop()).toBe(name);
      else if (!empty) open.push(name);
      return '';
    },
  );
  expect(open).toEqual([]);
  expect(rest).not.toMatch(/[<>]/);
}

// Just enough SVG: elements with escaped attributes and text, one theme for all pictures. The page behind a picture may be
// light or dark, so each stands on a card of its own, which follows the reader's colour scheme where that is known.

export type Attributes = Readonly<Record<string, string | number>>;

export function element(name: string, attributes: Attributes, ...children: readonly string[]): string {
  const written = Object.entries(attributes)
    .map(([key, value]) => ` ${key}="${typeof value === 'number' ? number(value) : escapeXml(value)}"`)
    .join('');
  return children.length === 0 ? `<${name}${written}/>` : `<${name}${written}>${children.join('')}</${name}>`;
}

export function text(x: number, y: number, className: string, content: string, attributes: Attributes = {}): string {
  return element('text', { x, y, class: className, ...attributes }, escapeXml(content));
}

/** Many rectangles as one path: an order of magnitude smaller than as many elements. */
export function rectanglePath(rectangles: readonly { x: number; y: number; width: number; height: number }[]): string {
  return rectangles
    .map(
      ({ x, y, width, height }) => `M${number(x)} ${number(y)}h${number(width)}v${number(height)}h${number(-width)}z`,
    )
    .join('');
}

export interface Picture {
  readonly width: number;
  readonly height: number;
  /** Read aloud, and shown on hover. */
  readonly title: string;
  readonly description: string;
  readonly definitions?: string;
  readonly body: readonly string[];
}

export function renderPicture({ width, height, title, description, definitions = '', body }: Picture): string {
  return `${element(
    'svg',
    {
      xmlns: 'http://www.w3.org/2000/svg',
      viewBox: `0 0 ${number(width)} ${number(height)}`,
      width,
      height,
      role: 'img',
      'font-family': "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif",
    },
    element('title', {}, escapeXml(title)),
    element('desc', {}, escapeXml(description)),
    element('style', {}, THEME),
    element('defs', {}, definitions),
    element('rect', { x: 0.5, y: 0.5, width: width - 1, height: height - 1, rx: 10, class: 'card' }),
    ...body.map((part) => `\n${part}`),
  )}\n`;
}

// Plain class rules, not CSS variables: several renderers know no variables.
const THEME = `
.card{fill:#fff;stroke:#d0d7de}.ink{fill:#1f2328}.soft{fill:#59636e}.lane{fill:#eaeef2}.grid{stroke:#d8dee4}
.rule{stroke:#1f2328}.soft-rule{stroke:#59636e}.title{font-size:18px;font-weight:600}.heading{font-size:14px;font-weight:600}
.body{font-size:12px}.small{font-size:10.5px}.end{text-anchor:end}.middle{text-anchor:middle}.on-bar{fill:#fff}
@media (prefers-color-scheme:dark){.card{fill:#0d1117;stroke:#3d444d}.ink{fill:#f0f6fc}.soft{fill:#9198a1}
.lane{fill:#21262d}.grid{stroke:#2f353d}.rule{stroke:#f0f6fc}.soft-rule{stroke:#9198a1}}
`;

export function number(value: number): string {
  return String(Math.round(value * 100) / 100);
}

export function escapeXml(content: string): string {
  const names: Readonly<Record<string, string>> = {
    '&': '&amp;',
    '<': '&lt;',
    '>': '&gt;',
    '"': '&quot;',
    "'": '&apos;',
  };
  return content.replace(/[\p{Cc}\uFFFE\uFFFF]/gu, ' ').replace(/[&<>"']/g, (character) => names[character]);
}

/** The largest of 1, 2, 5, 10, … steps that cuts `span` into at most `count` pieces. */
export function axisStep(span: number, count: number): number {
  const rough = Math.max(span / count, 1e-9);
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
}

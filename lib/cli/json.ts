// JSON for people and programs: indented, but what is short, such as a shape or a segment, stays on a line.

const LINE = 240;

export function formatJson(value: unknown): string {
  const indented = JSON.stringify(value, null, 2);
  // Innermost lists and objects only. A line break is never part of a JSON string, and spaces go with a line break alone,
  // so only layout changes.
  const joined = indented.replace(/[[{][^[\]{}]*[\]}]/g, (text) => {
    const line = text.replace(/^(.)\n\s*|\n\s*(.)$/g, '$1$2').replace(/\n\s*/g, ' ');
    return line.length <= LINE ? line : text;
  });
  return `${joined}\n`;
}

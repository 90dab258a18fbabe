// The README's examples where there is a CUDA device, the rehearsed one: those that need it find none elsewhere, and the others
// must not fail for having one.
import { rmSync } from 'node:fs';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { examplesOf, makeProject, readme, runExample } from './helpers/readme';
import { buildRehearsal } from './helpers/rehearsal-build';
import { addonPath } from './helpers/rehearsed-cuda';

const project = makeProject();
afterAll(() => rmSync(project, { recursive: true, force: true }));
beforeAll(() => buildRehearsal('rehearsed_addon'), 12 * 60_000);

test.each(examplesOf(readme))('the example at line $line runs', (example) => {
  const { status, stdout, stderr } = runExample(project, example, { LEAN_ATTENTION_ADDON: addonPath });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  if (example.code.includes('createStream')) expect(stdout).toMatch(/^cuda:0 /);
});

test('one of them uses a stream', () => expect(readme).toContain('device.createStream()'));

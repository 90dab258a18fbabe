// Builds programs of the rehearsal, one builder at a time: test files run side by side and share the build folder.
import { spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../..', import.meta.url));
export const rehearsalFolder = path.join(root, 'build/rehearsal');

const STALE_MS = 15 * 60_000; // a builder that was killed leaves its lock behind

async function locked<T>(file: string, work: () => T): Promise<T> {
  for (;;) {
    try {
      closeSync(openSync(file, 'wx'));
      break;
    } catch {
      const age = Date.now() - (statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? Date.now());
      if (age > STALE_MS) rmSync(file, { force: true });
      await sleep(200);
    }
  }
  try {
    return work();
  } finally {
    rmSync(file, { force: true });
  }
}

/** Builds `targets`, or everything. Throws with the compiler's words. */
export async function buildRehearsal(...targets: string[]): Promise<void> {
  mkdirSync(rehearsalFolder, { recursive: true });
  await locked(`${rehearsalFolder}.lock`, () => {
    const target = targets.length > 0 ? ['--target', ...targets] : [];
    for (const args of [
      ['-S', path.join(root, 'test/rehearsal'), '-B', rehearsalFolder],
      ['--build', rehearsalFolder, '--parallel', '2', ...target],
    ]) {
      const { status, stdout, stderr } = spawnSync('cmake', args, { encoding: 'utf8', maxBuffer: 1 << 26 });
      if (status !== 0) throw new Error(`cmake ${args.join(' ')} failed:\n${stdout}\n${stderr}`);
    }
  });
}

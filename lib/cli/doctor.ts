// `lean-attention doctor`: what this machine and this installation offer, and what to do about what is missing. It must
// help most where the native addon does not load: then the load error, which is a help page, is the answer.

import { installation } from '../index';
import { driverVersion } from './driver';
import { ExitCode } from './errors';
import { formatJson } from './json';
import { defineCommand } from './options';
import { formatBytes, plural } from './units';

type Installation = ReturnType<typeof installation>;

export const doctorCommand = defineCommand(
  {
    name: 'doctor',
    summary: 'Says what was found on this machine and, where something is missing, what to do.',
    positionals: [],
    options: { json: { help: 'print it as JSON' } },
    notes: ['Exit code 0 when there is a device to compute on, 3 when the native addon cannot load.'],
    examples: ['lean-attention doctor', 'lean-attention doctor --json'],
  },
  async ({ has }, terminal) => {
    const system = { node: process.version, platform: process.platform, arch: process.arch };
    let found: Installation;
    try {
      found = installation();
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error);
      if (has('json')) terminal.out(formatJson({ ok: false, ...system, problem: message }));
      else terminal.out(`${message}\n`);
      return ExitCode.noDevice;
    }
    const driver = driverVersion();
    if (has('json')) terminal.out(formatJson({ ok: true, ...system, driver, ...found }));
    else terminal.out(describeInstallation(found, system, driver));
    return ExitCode.ok;
  },
);

function describeInstallation(
  found: Installation,
  system: { node: string; platform: string; arch: string },
  driver: string | null,
): string {
  const { version, cpu, cuda, addon } = found;
  const lines: [boolean, string, string][] = [
    [true, 'lean-attention', `${version} on Node ${system.node}, ${system.platform}-${system.arch}`],
    [true, 'addon', `${addon.path}\n${addon.buildType} build by ${addon.compiler}, N-API ${addon.napiVersion}`],
    [
      true,
      'CPU',
      `${cpu.model}, ${plural(cpu.cores, 'core')}\nruns with ${cpu.instructionSets[0]}; usable here: ${cpu.instructionSets.join(', ')}`,
    ],
    ...(driver === null ? [] : [[true, 'NVIDIA driver', driver] satisfies [boolean, string, string]]),
    ...cuda.devices.map(({ index, name, computeCapability, memoryBytes, reason }): [boolean, string, string] => [
      reason === '',
      `cuda:${index}`,
      reason === '' ? `${name}, compute capability ${computeCapability}, ${formatBytes(memoryBytes)}` : reason,
    ]),
  ];
  if (cuda.devices.length === 0) lines.push([false, 'CUDA', cuda.reason]);
  const width = Math.max(...lines.map(([, title]) => title.length)) + 2;
  const text = lines.map(([ok, title, body]) =>
    body
      .split('\n')
      .map((line, i) => (i === 0 ? `${ok ? '✓' : '✗'} ${title.padEnd(width)}${line}` : ' '.repeat(width + 2) + line))
      .join('\n'),
  );
  const first = cuda.devices.find((device) => device.reason === '');
  const advice =
    first === undefined
      ? 'The CPU device works; --device cuda ends with exit code 3 until the above is mended.'
      : lines.every(([ok]) => ok)
        ? 'Everything is there.'
        : `--device cuda:${first.index} works; what is marked needs mending.`;
  return `${text.join('\n')}\n\n${advice}\n`;
}

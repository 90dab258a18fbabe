export type Build = 'fast' | 'race' | 'sanitize';
export interface Bug {
  name: string;
  file: string;
  find: string;
  replace: string;
  build: Build;
  set?: string;
  says: RegExp;
}
export interface Attempt {
  found: boolean;
  text: string;
}
export const buildDir: string;
export const plantedBugs: readonly Bug[];
export function copySources(directory: string): void;
export function compileThin(
  directory: string,
  build: Build,
  instance?: { type?: string; headDim?: number },
): Promise<{ program: string; error?: undefined } | { program?: undefined; error: string }>;
export function findFault(
  program: string,
  options?: { every?: number; set?: string; timeout?: number },
): Promise<string | null>;
export function tryBug(bug: Bug): Promise<Attempt>;
export function control(build: Build, every: number): Promise<string | null>;

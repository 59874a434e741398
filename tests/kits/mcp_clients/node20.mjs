// The conformance tests import fs.globSync, which Node has from version 22 on, and which tests of servers do not call.
import * as fs from 'node:fs';
import { register } from 'node:module';

if (!('globSync' in fs)) {
  const more = 'data:text/javascript,' + encodeURIComponent(
    "export * from 'node:fs'; export { default } from 'node:fs'; export const globSync = undefined;");
  register('data:text/javascript,' + encodeURIComponent(`
    export const resolve = (name, context, next) =>
      name === 'fs' && !context.parentURL?.startsWith('data:') ? { url: ${JSON.stringify(more)}, shortCircuit: true } : next(name, context);`));
}

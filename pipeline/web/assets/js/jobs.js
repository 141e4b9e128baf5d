/** Work that the server does while the person does something else. */

import { ApiError, get } from './api.js';
import { h } from './dom.js';
import { strings } from './strings.js';

const FIRST_WAIT = 400;
const LONGEST_WAIT = 3000;
const PATIENCE = 10;

/** @param {import('./types.js').Job} job */
export function finished(job) {
  return ['done', 'failed', 'cancelled', 'finished', 'succeeded'].includes(job.state);
}

/** @param {import('./types.js').Job} job */
export function failed(job) {
  return ['failed', 'cancelled'].includes(job.state);
}

/**
 * Ask for the state of a job until it is finished. A connection that breaks is tried again for a while.
 *
 * @param {string} id
 * @param {(job: import('./types.js').Job) => void} progress
 * @param {AbortSignal} signal
 * @returns {Promise<import('./types.js').Job>}
 */
export async function follow(id, progress, signal) {
  let wait = FIRST_WAIT;
  let failures = 0;
  for (;;) {
    try {
      const job = /** @type {import('./types.js').Job} */ (await get(`/jobs/${encodeURIComponent(id)}`, {}, signal));
      failures = 0;
      progress(job);
      if (finished(job)) return job;
    } catch (error) {
      failures += 1;
      if (!(error instanceof ApiError) || !(error.offline || error.status >= 500) || failures > PATIENCE) throw error;
    }
    await pause(wait, signal);
    wait = Math.min(LONGEST_WAIT, wait * 1.4);
  }
}

/**
 * @param {number} milliseconds
 * @param {AbortSignal} signal
 * @returns {Promise<void>}
 */
export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(new DOMException('left', 'AbortError'));
    });
  });
}

/**
 * A bar of how far a job is.
 *
 * @param {string} label
 * @param {number|null|undefined} share 0 to 1; unknown otherwise
 */
export function bar(label, share) {
  const known = typeof share === 'number';
  return h(
    'div',
    { class: 'progress' },
    h('progress', known ? { max: '1', value: String(share), 'aria-label': label } : { 'aria-label': label }),
    h('span', { class: 'soft' }, known ? `${Math.round(share * 100)} %` : strings.working),
  );
}

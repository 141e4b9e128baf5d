/** The person at the page: name, role, what the role may do, and the model that answers. */

import { ApiError, change, get, identify } from './api.js';

/** @type {{now: import('./types.js').Session|null, ended: () => void}} */
const state = { now: null, ended: () => {} };

/**
 * Call `act` whenever the server no longer knows the session.
 *
 * @param {() => void} act
 */
export function whenEnded(act) {
  state.ended = act;
}

/**
 * Ask the server who is here.
 *
 * @returns {Promise<import('./types.js').Session>}
 */
export async function load() {
  identify('', () => {});
  const now = /** @type {import('./types.js').Session} */ (await get('/session'));
  if (!now.name) throw new ApiError({ detail: '', oidc: now.oidc }, 401);
  state.now = now;
  identify(now.csrf ?? '', () => {
    if (!state.now) return;
    state.now = null;
    state.ended();
  });
  return now;
}

/** The session. Raises if nobody is logged in. */
export function session() {
  if (!state.now) throw new Error('no session');
  return state.now;
}

/**
 * Whether the role includes an action on some stream; the server decides on each stream.
 *
 * @param {string} action
 */
export function may(action) {
  return Boolean(state.now?.actions.includes(action));
}

/**
 * Log in and load the session.
 *
 * @param {string} name
 * @param {string} password
 */
export async function logIn(name, password) {
  identify('', () => {});
  await change('POST', '/session', { name, password });
  return load();
}

/** Log out. */
export async function logOut() {
  await change('DELETE', '/session');
  state.now = null;
}

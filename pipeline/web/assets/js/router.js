/** Hash routes: `#/search?text=dog`. The address holds what a view shows, so that links and the back button work. */

/** @typedef {{name: string, params: URLSearchParams}} Route */

/**
 * The route of the address.
 *
 * @returns {Route}
 */
export function current() {
  const [path, query = ''] = location.hash.replace(/^#\/?/, '').split(/\?(.*)/s);
  return { name: path || 'streams', params: new URLSearchParams(query) };
}

/**
 * The address of a view; empty values are left out.
 *
 * @param {string} name
 * @param {Record<string, string|number|boolean|string[]|null|undefined>} [params]
 * @returns {string}
 */
export function href(name, params = {}) {
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(params)) {
    if (Array.isArray(value)) value.forEach((each) => query.append(key, each));
    else if (value !== null && value !== undefined && value !== '' && value !== false) query.append(key, String(value));
  }
  const text = query.toString();
  return `#/${name}${text ? `?${text}` : ''}`;
}

/**
 * Go to a view.
 *
 * @param {string} name
 * @param {Parameters<typeof href>[1]} [params]
 */
export function go(name, params) {
  const target = href(name, params);
  if (target === location.hash) window.dispatchEvent(new HashChangeEvent('hashchange'));
  else location.hash = target;
}

/**
 * Change the address without a new view.
 *
 * @param {string} name
 * @param {Parameters<typeof href>[1]} params
 */
export function settle(name, params) {
  history.replaceState(null, '', href(name, params));
}

/**
 * Call `act` with each new route.
 *
 * @param {(route: Route) => void} act
 */
export function listen(act) {
  window.addEventListener('hashchange', () => act(current()));
}

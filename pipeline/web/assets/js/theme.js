/** Light and dark: what the system prefers until the viewer chooses. Canvases read their colours here. */

const KEY = 'sightline.theme';

/** @returns {'light'|'dark'} */
export function theme() {
  const chosen = localStorage.getItem(KEY);
  if (chosen === 'light' || chosen === 'dark') return chosen;
  return matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light';
}

/** Give the page its colours. */
export function apply() {
  document.documentElement.dataset.theme = theme();
  document.dispatchEvent(new CustomEvent('theme'));
}

/** The other one. */
export function toggle() {
  localStorage.setItem(KEY, theme() === 'dark' ? 'light' : 'dark');
  apply();
}

/** Follow the system where the viewer has not chosen. */
export function follow() {
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', apply);
}

/**
 * The value of a colour of the style sheet.
 *
 * @param {string} name such as `--key`
 */
export function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** Whether the viewer wants little movement. */
export function still() {
  return matchMedia('(prefers-reduced-motion: reduce)').matches;
}

/** @type {Record<'light'|'dark', [number, number, number][]>} */
const RAMPS = {
  light: [
    [241, 245, 249],
    [199, 210, 254],
    [129, 140, 248],
    [79, 70, 229],
    [49, 46, 129],
  ],
  dark: [
    [30, 39, 54],
    [49, 46, 129],
    [79, 70, 229],
    [129, 140, 248],
    [224, 231, 255],
  ],
};

/**
 * The colour of a relevance between the least (0) and the greatest (1) of a window.
 *
 * @param {number} level
 */
export function heat(level) {
  const ramp = RAMPS[theme()];
  const place = Math.min(Math.max(level, 0), 1) * (ramp.length - 1);
  const low = Math.min(Math.floor(place), ramp.length - 2);
  const mixed = ramp[low].map((from, i) => Math.round(from + (ramp[low + 1][i] - from) * (place - low)));
  return `rgb(${mixed.join(' ')})`;
}

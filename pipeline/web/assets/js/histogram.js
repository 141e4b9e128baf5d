/** A histogram of scores with a threshold, on a canvas; the numbers are its accessible name. */

import { h } from './dom.js';
import { strings } from './strings.js';
import { colour } from './theme.js';

const HEIGHT = 130;
const FOOT = 18;

/**
 * @param {{edges: number[], counts: number[]}} data
 * @param {number|null} threshold
 * @param {AbortSignal} signal
 * @returns {HTMLElement}
 */
export function histogram(data, threshold, signal) {
  const total = data.counts.reduce((sum, each) => sum + each, 0);
  const canvas = h('canvas', {
    class: 'histogram',
    role: 'img',
    'aria-label': strings.standing.histogram(total, threshold),
  });
  const draw = () => {
    const width = canvas.clientWidth;
    const pen = canvas.getContext('2d');
    if (!width || !pen || data.edges.length < 2) return;
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(HEIGHT * scale);
    pen.scale(scale, scale);
    pen.font = `11px ${colour('--font') || 'sans-serif'}`;
    const low = Math.min(data.edges[0], threshold ?? Infinity);
    const high = Math.max(data.edges[data.edges.length - 1], threshold ?? -Infinity);
    const x = (/** @type {number} */ value) => ((value - low) / Math.max(high - low, 1e-9)) * (width - 2) + 1;
    // Scores beyond the threshold are few: a logarithm keeps them visible.
    const most = Math.log1p(Math.max(...data.counts, 1));
    data.counts.forEach((value, i) => {
      if (!value) return;
      const tall = Math.max(2, (Math.log1p(value) / most) * (HEIGHT - FOOT - 8));
      const over = threshold !== null && data.edges[i] >= threshold;
      pen.fillStyle = colour(over ? '--key' : '--cover');
      pen.fillRect(
        x(data.edges[i]),
        HEIGHT - FOOT - tall,
        Math.max(1, x(data.edges[i + 1]) - x(data.edges[i]) - 1),
        tall,
      );
    });
    pen.fillStyle = colour('--line');
    pen.fillRect(0, HEIGHT - FOOT, width, 1);
    pen.fillStyle = colour('--soft');
    pen.textAlign = 'left';
    pen.fillText(low.toFixed(3), 0, HEIGHT - 4);
    pen.textAlign = 'right';
    pen.fillText(high.toFixed(3), width, HEIGHT - 4);
    if (threshold !== null) {
      const at = x(threshold);
      pen.fillStyle = colour('--key');
      pen.fillRect(at - 0.75, 0, 1.5, HEIGHT - FOOT);
      pen.textAlign = at > width * 0.7 ? 'right' : 'left';
      pen.fillStyle = colour('--ink');
      pen.fillText(strings.standing.threshold(threshold), at + (at > width * 0.7 ? -6 : 6), 12);
    }
  };
  canvas.style.setProperty('height', `${HEIGHT}px`);
  const observer = new ResizeObserver(draw);
  observer.observe(canvas);
  document.addEventListener('theme', draw, { signal });
  signal.addEventListener('abort', () => observer.disconnect());
  return canvas;
}

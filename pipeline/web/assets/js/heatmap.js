/** What is kept of a frame that is not a keyframe, drawn over its picture. */

import { get, picture } from './api.js';
import { h } from './dom.js';
import { spoken, when } from './moments.js';
import { strings } from './strings.js';

const STRONGEST = 0.72;

/**
 * The picture of a frame with the weights of its patches over it; a slider fades them.
 *
 * @param {string} stream
 * @param {string} at
 * @param {string} question id of the question
 * @param {AbortSignal} signal
 * @returns {Promise<HTMLElement>}
 */
export async function heatmap(stream, at, question, signal) {
  const reply = await get('/heatmap', { stream, at, question }, signal);
  const image = h('img', { class: 'whole', src: picture(stream, at), alt: strings.ask.heat(stream, spoken(at)) });
  const over = overlay(reply.grid);
  const fade = h('input', { type: 'range', min: '0', max: '1', step: '0.05', value: '0.85' });
  fade.setAttribute('aria-label', strings.ask.fade);
  const set = () => over.style.setProperty('opacity', fade.value);
  fade.addEventListener('input', set);
  set();
  return h(
    'div',
    { class: 'heatmap' },
    h('div', { class: 'heatmap-stage' }, image, over),
    h('label', { class: 'fade' }, h('span', null, strings.ask.fade), fade),
    reply.keyframe ? h('p', { class: 'hint' }, strings.ask.compared, ' ', when(reply.keyframe)) : null,
  );
}

/**
 * @param {number[][]} grid rows of weights, 0 to 1
 * @returns {HTMLElement}
 */
function overlay(grid) {
  const rows = grid.length;
  const columns = grid[0]?.length ?? 0;
  const canvas = h('canvas', {
    class: 'heatmap-over',
    width: Math.max(1, columns),
    height: Math.max(1, rows),
    'aria-hidden': 'true',
  });
  const pen = canvas.getContext('2d');
  const most = Math.max(1e-9, ...grid.flat());
  if (!pen) return canvas;
  const pixels = pen.createImageData(Math.max(1, columns), Math.max(1, rows));
  grid.forEach((row, y) => {
    row.forEach((weight, x) => {
      const level = weight / most;
      const [r, g, b] = fire(level);
      pixels.data.set([r, g, b, Math.round(255 * STRONGEST * Math.min(1, 0.12 + level))], (y * columns + x) * 4);
    });
  });
  pen.putImageData(pixels, 0, 0);
  return canvas;
}

/**
 * Dark blue, magenta, orange, yellow: seen on any picture and by eyes that do not tell red from green.
 *
 * @param {number} level
 * @returns {number[]}
 */
function fire(level) {
  const stops = [
    [18, 20, 70],
    [120, 28, 109],
    [229, 92, 48],
    [252, 235, 120],
  ];
  const place = Math.min(Math.max(level, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(place), stops.length - 2);
  return stops[low].map((from, i) => Math.round(from + (stops[low + 1][i] - from) * (place - low)));
}

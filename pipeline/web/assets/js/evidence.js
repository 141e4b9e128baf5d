/** The frames that an answer rests on: keyframes as pictures, and the relevance of every frame over time. */

import { own, thumbnail } from './api.js';
import * as clock from './clock.js';
import { button, fill, h, icon, linkButton } from './dom.js';
import { photo } from './fields.js';
import { heatmap } from './heatmap.js';
import { count, spoken, when } from './moments.js';
import { dialog, explain, left, waiting } from './notices.js';
import { watch } from './player.js';
import { href } from './router.js';
import { strings } from './strings.js';
import { Timeline } from './timeline.js';

const SHOWN = 12;

/** @typedef {import('./types.js').Selected} Selected */

/**
 * The curve of each stream, whatever shape the server sends it in.
 *
 * @param {Selected} selected
 * @returns {[string, import('./types.js').Curve][]}
 */
function curves(selected) {
  const relevance = selected.relevance;
  if (Array.isArray(relevance)) return relevance.map((curve) => [curve.stream_id, curve]);
  if (Array.isArray(relevance.times)) {
    const name = selected.keyframes[0]?.stream_id ?? '';
    return [[name, /** @type {import('./types.js').Curve} */ (relevance)]];
  }
  return Object.entries(/** @type {Record<string, import('./types.js').Curve>} */ (relevance));
}

/**
 * Draw the evidence; a keyframe plays where it is clicked, any other frame shows what is kept of it.
 *
 * @param {HTMLElement} place
 * @param {Selected} selected
 * @param {string|null} id of the question
 * @param {AbortSignal} signal
 */
export function showEvidence(place, selected, id, signal) {
  const text = strings.ask;
  /** @type {Map<string, string>} */
  const names = new Map();
  for (const frame of selected.keyframes)
    names.set(`${frame.stream_id} ${clock.millis(frame.captured_at)}`, frame.captured_at);
  const lanes = curves(selected).map(([stream, curve]) => {
    for (const at of curve.times) names.set(`${stream} ${clock.millis(at)}`, at);
    const order = curve.times
      .map((at, i) => /** @type {[number, number]} */ ([clock.millis(at), curve.scores[i]]))
      .sort((a, b) => a[0] - b[0]);
    return {
      stream,
      times: order.map(([at]) => at),
      scores: order.map(([, score]) => score),
      marks: selected.keyframes
        .filter((frame) => frame.stream_id === stream)
        .map((frame) => clock.millis(frame.captured_at))
        .sort((a, b) => a - b),
    };
  });
  const timeline = lanes.some((lane) => lane.times.length)
    ? new Timeline({
        lanes,
        label: text.timeline,
        pick: (place) => {
          // The exact time, as the server writes it: a frame is found by it.
          const exact = names.get(`${place.lane.stream} ${place.at}`) ?? clock.rfc3339(place.at);
          if (place.keyframe) watch(place.lane.stream, exact);
          else explainFrame(place.lane.stream, exact, id);
        },
      })
    : null;
  signal.addEventListener('abort', () => timeline?.destroy());
  const ranked = [...selected.keyframes].sort((a, b) => b.score - a.score);
  /** @type {Map<string, number>} */
  const perStream = new Map();
  for (const { stream_id } of ranked) perStream.set(stream_id, (perStream.get(stream_id) ?? 0) + 1);
  const several = perStream.size > 1;
  const streams = selected.window_streams ?? lanes.length;
  const named = [...perStream]
    .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1))
    .map(([stream, number]) => `${stream} (${number})`);
  const grid = h('div', { class: 'frames' });
  const figure = (/** @type {import('./types.js').Keyframe} */ frame) =>
    h(
      'figure',
      { class: 'keyframe' },
      h(
        'button',
        {
          type: 'button',
          class: 'keyframe-play',
          'aria-label': text.playKeyframe(frame.stream_id, spoken(frame.captured_at)),
          on: { click: () => watch(frame.stream_id, frame.captured_at) },
        },
        photo(own(frame.thumbnail) ?? thumbnail(frame.stream_id, frame.captured_at), '', { lazy: true }),
        h('span', { class: 'play-sign', 'aria-hidden': 'true' }, icon('play')),
      ),
      h(
        'figcaption',
        null,
        h(
          'span',
          null,
          several ? h('b', null, frame.stream_id, ' ') : null,
          when(frame.captured_at, { date: false, stacked: true }),
        ),
        h('span', { class: 'soft', title: text.relevance }, frame.score.toFixed(3)),
      ),
    );
  const draw = (/** @type {number} */ most) => fill(grid, ranked.slice(0, most).map(figure));
  draw(SHOWN);
  const more =
    ranked.length > SHOWN
      ? button(
          text.moreKeyframes(ranked.length - SHOWN),
          () => {
            draw(Infinity);
            more?.remove();
          },
          { small: true, kind: 'quiet' },
        )
      : null;
  const redraw = () => draw(more?.isConnected ? SHOWN : Infinity);
  document.addEventListener('zone', redraw, { signal });
  fill(
    place,
    h(
      'div',
      { class: 'card stack' },
      h('h3', null, text.rests(count(ranked.length), count(selected.window_frames))),
      streams > 1 ? h('p', { class: 'hint' }, text.from(named.length, count(streams), named.join(', '))) : null,
      timeline?.element ?? null,
      streams > lanes.length ? h('p', { class: 'hint' }, text.lanes(lanes.length, count(streams))) : null,
      h(
        'div',
        { class: 'legend' },
        h('span', null, h('b', { class: 'swatch heat' }), text.legendHeat),
        h('span', null, h('b', { class: 'swatch key' }), text.legendKey),
        h('span', { class: 'legend-keys' }, text.legendKeys),
      ),
      grid,
      more,
    ),
  );
}

/**
 * A frame that is not a keyframe: what differential feature merging kept of it.
 *
 * @param {string} stream
 * @param {string} at
 * @param {string|null} id
 */
async function explainFrame(stream, at, id) {
  const text = strings.ask;
  const control = new AbortController();
  const body = h('div', { class: 'stack' });
  const closed = dialog(text.frame(stream, spoken(at)), () => [body], { wide: true });
  closed.then(() => control.abort());
  try {
    fill(body, waiting(strings.loading));
    if (!id) throw new Error(text.noHeat);
    const map = await heatmap(stream, at, id, control.signal);
    fill(
      body,
      map,
      h('p', { class: 'hint' }, text.heatHow),
      h(
        'div',
        { class: 'row end' },
        button(
          text.playHere,
          () => {
            control.abort();
            watchInstead(body, stream, at);
          },
          { icon: 'play', small: true },
        ),
        linkButton(text.open, href('moment', { stream, at }), { icon: 'moment', small: true }),
      ),
    );
  } catch (error) {
    if (!left(error))
      fill(
        body,
        h('img', { class: 'whole', src: thumbnail(stream, at, 640), alt: spoken(at) }),
        h('p', { class: 'hint' }, explain(error)),
      );
  }
}

/**
 * @param {HTMLElement} body
 * @param {string} stream
 * @param {string} at
 */
function watchInstead(body, stream, at) {
  body.closest('dialog')?.close();
  watch(stream, at);
}

/**
 * One moment of one stream: the player, the frames around it, other streams at the same time, and what can be done with
 * it: more like this, hold, export, ask.
 */

import { change, get, own, picture, thumbnail } from '../api.js';
import { Boxes } from '../box.js';
import { catalogue } from '../catalogue.js';
import * as clock from '../clock.js';
import { button, fill, h, icon, labelled, settled } from '../dom.js';
import { pageHead, photo, streamsField, windowField } from '../fields.js';
import { spoken, when } from '../moments.js';
import { dialog, empty, explain, left, problem, toast, waiting } from '../notices.js';
import { Player } from '../player.js';
import { go, href, settle } from '../router.js';
import { may } from '../session.js';
import { setView } from '../shortcuts.js';
import { strings } from '../strings.js';
import { nearest } from '../timeline.js';

const SPAN = 60;
const SPANS = [20, 60, 180, 600];

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} params
 * @param {{signal: AbortSignal}} context
 */
export async function moment(root, params, { signal }) {
  const stream = params.get('stream') ?? '';
  const at = params.get('at') ?? '';
  if (!stream || !at) {
    await chooser(root, signal);
    return;
  }
  const span = Number(params.get('span')) || SPAN;
  const body = h('div', { class: 'stack' });
  fill(root, pageHead(stream), body);
  fill(body, waiting(strings.loading));
  /** @type {import('../types.js').Moment} */
  let found;
  try {
    found = await get('/moment', { stream, at, span }, signal);
  } catch (error) {
    if (!left(error))
      fill(
        body,
        problem(error, () => moment(root, params, { signal })),
      );
    return;
  }
  if (!signal.aborted) draw(root, found, span, params.get('play') === '1', signal);
}

/**
 * @param {HTMLElement} root
 * @param {import('../types.js').Moment} found
 * @param {number} span seconds
 * @param {boolean} play
 * @param {AbortSignal} signal
 */
function draw(root, found, span, play, signal) {
  const text = strings.moment;
  const stream = found.stream_id;
  let at = clock.millis(found.at);
  let frames = found.frames;
  const now = () => clock.rfc3339(Math.floor(at / 1000) * 1000);
  const frameAt = () => {
    const times = frames.map((frame) => clock.millis(frame.captured_at));
    return frames[times.indexOf(nearest(times, at))]?.captured_at ?? now();
  };
  const heading = h('p', { class: 'moment-when' });
  const strip = h('div', { class: 'strip', role: 'group', 'aria-label': text.strip });
  const others = h('div', { class: 'others' });
  const range = () => ({ stream, start: clock.rfc3339(at - 5000), end: clock.rfc3339(at + 10000) });

  const mark = () => {
    fill(
      heading,
      when(now()),
      h('span', { class: 'soft' }, ` · ${text.clock(found.clock.source, found.clock.zone ?? '')}`),
    );
    const current = frameAt();
    for (const each of strip.children) {
      const entry = /** @type {HTMLElement} */ (each);
      const here = entry.dataset.at === current;
      if (here === (entry.getAttribute('aria-current') === 'true')) continue;
      if (here) {
        entry.setAttribute('aria-current', 'true');
        const middle = entry.offsetLeft - strip.clientWidth / 2 + entry.offsetWidth / 2;
        strip.scrollTo({ left: middle });
      } else entry.removeAttribute('aria-current');
    }
  };

  const drawStrip = () => {
    fill(
      strip,
      frames.map((frame) =>
        h(
          'button',
          {
            type: 'button',
            class: 'strip-frame',
            data: { at: frame.captured_at },
            'aria-label': spoken(frame.captured_at),
            on: { click: () => player.jump(clock.millis(frame.captured_at)) },
          },
          photo(own(frame.thumbnail) ?? thumbnail(stream, frame.captured_at, 160), '', { lazy: true }),
          h('span', { 'aria-hidden': 'true' }, clock.time(clock.millis(frame.captured_at))),
        ),
      ),
    );
    mark();
  };

  const drawOthers = (/** @type {import('../types.js').Moment['others']} */ list) => {
    fill(
      others,
      list.length
        ? list.map((other) =>
            h(
              'figure',
              { class: 'keyframe' },
              h(
                'a',
                {
                  href: href('moment', { stream: other.stream_id, at: other.at, span: span === SPAN ? '' : span }),
                  'aria-label': text.otherAt(other.stream_id, spoken(other.at)),
                },
                photo(own(other.thumbnail) ?? thumbnail(other.stream_id, other.at), '', { lazy: true }),
              ),
              h('figcaption', null, h('b', null, other.stream_id), when(other.at, { date: false, stacked: true })),
            ),
          )
        : h('p', { class: 'hint' }, text.noOthers),
    );
  };

  // Where the player rests, the address, the strip and the other streams follow.
  const follow = settled(async () => {
    if (signal.aborted) return;
    settle('moment', { stream, at: now(), span: span === SPAN ? '' : span });
    const seconds = Math.abs(at - clock.millis(found.at)) / 1000;
    if (seconds < 1) return;
    try {
      const fresh = /** @type {import('../types.js').Moment} */ (
        await get('/moment', { stream, at: now(), span }, signal)
      );
      found = { ...found, at: fresh.at, others: fresh.others };
      drawOthers(fresh.others);
      const times = frames.map((frame) => clock.millis(frame.captured_at));
      if (at < times[0] - 1500 || at > times[times.length - 1] + 1500) {
        frames = fresh.frames;
        drawStrip();
      }
    } catch {
      // The pictures of the moment before stay.
    }
  }, 500);

  const player = new Player({
    moment: found,
    signal,
    play,
    moved: (time, still) => {
      at = time;
      mark();
      if (still) follow();
    },
  });

  const spanSelect = h(
    'select',
    { 'aria-label': text.span },
    SPANS.map((value) => h('option', { value: String(value), selected: value === span }, text.around(value))),
  );
  spanSelect.addEventListener('change', () => go('moment', { stream, at: now(), span: spanSelect.value }));
  const exportNow = () => go('exports', range());
  const like = () => chooseBox(stream, frameAt());
  fill(
    root,
    pageHead(
      stream,
      button(text.like, like, { icon: 'box' }),
      may('ask')
        ? button(
            text.ask,
            () => go('ask', { streams: [stream], start: clock.rfc3339(at - 300000), end: clock.rfc3339(at + 300000) }),
            { icon: 'ask' },
          )
        : null,
      may('hold')
        ? button(text.hold, () => placeHold(stream, clock.rfc3339(at - 30000), clock.rfc3339(at + 30000)), {
            icon: 'lock',
          })
        : null,
      may('export') ? button(text.export, exportNow, { icon: 'exports', kind: 'primary' }) : null,
    ),
    heading,
    h(
      'div',
      { class: 'moment-grid' },
      h('div', { class: 'card flush' }, player.element),
      h('section', { class: 'card moment-side' }, h('h2', null, text.others), others),
    ),
    h('section', { class: 'card' }, h('div', { class: 'row between' }, h('h2', null, text.frames), spanSelect), strip),
  );
  drawOthers(found.others);
  if (frames.length) drawStrip();
  else fill(strip, empty(text.noFrames));
  mark();
  setView([
    { keys: [' ', 'p'], text: text.keys.play, act: () => player.toggle() },
    { keys: [','], text: text.keys.back, act: () => player.stepFrame(-1) },
    { keys: ['.'], text: text.keys.forward, act: () => player.stepFrame(1) },
    { keys: ['ArrowLeft'], text: text.keys.left, act: () => player.skip(-1) },
    { keys: ['ArrowRight'], text: text.keys.right, act: () => player.skip(1) },
    { keys: ['J', 'j'], text: text.keys.tenBack, act: () => player.skip(-10) },
    { keys: ['L', 'l'], text: text.keys.tenForward, act: () => player.skip(10) },
    { keys: ['b'], text: text.keys.like, act: like },
    ...(may('export') ? [{ keys: ['e'], text: text.keys.export, act: exportNow }] : []),
  ]);
  document.addEventListener(
    'zone',
    () => {
      drawStrip();
      drawOthers(found.others);
    },
    { signal },
  );
}

/**
 * Search by a frame, or by a part of it.
 *
 * @param {string} stream
 * @param {string} at
 */
function chooseBox(stream, at) {
  const text = strings.boxes;
  const image = h('img', { class: 'whole', src: picture(stream, at), alt: spoken(at), draggable: 'false' });
  const words = h('input', { type: 'text', placeholder: text.wordsPlaceholder });
  /** @type {import('../types.js').Box[]} */
  let boxes = [];
  dialog(
    text.title,
    (close) => {
      const send = button(
        text.whole,
        () => {
          close();
          go('search', {
            like: stream,
            at,
            box: boxes[0]?.map((value) => value.toFixed(4)).join(','),
            text: words.value.trim(),
            weight: words.value.trim() ? '0.5' : '',
          });
        },
        { kind: 'primary', icon: 'search' },
      );
      const drawn = new Boxes({
        image,
        most: 1,
        label: text.surface,
        change: (list) => {
          boxes = list;
          fill(send, icon('search'), h('span', null, list.length ? text.part : text.whole));
        },
      });
      return [
        h('p', { class: 'hint' }, text.how),
        drawn.element,
        labelled(text.words, words),
        h(
          'div',
          { class: 'row end' },
          button(text.clear, () => drawn.clear(), { kind: 'quiet' }),
          send,
        ),
      ];
    },
    { wide: true },
  );
}

/**
 * Hold a stretch of a stream.
 *
 * @param {string} stream
 * @param {string} start
 * @param {string} end
 */
export function placeHold(stream, start, end) {
  const text = strings.holds;
  const window = windowField(start, end, { required: true });
  const reason = h('input', { type: 'text', required: true, maxlength: '500' });
  return dialog(text.title, (close) => {
    const said = h('p', { class: 'form-error', role: 'alert' });
    const form = h(
      'form',
      { class: 'stack' },
      h('p', null, text.how(stream)),
      window.element,
      labelled(text.reason, reason),
      said,
      h(
        'div',
        { class: 'row end' },
        button(strings.cancel, close, { kind: 'quiet' }),
        button(text.place, () => {}, { kind: 'primary', icon: 'lock', type: 'submit' }),
      ),
    );
    form.addEventListener('submit', async (event) => {
      event.preventDefault();
      try {
        await change('POST', '/holds', { stream, ...window.value(), reason: reason.value.trim() });
        toast(text.placed, 'good');
        close();
      } catch (error) {
        fill(said, explain(error));
      }
    });
    return [form];
  });
}

/**
 * Without a moment: choose one by stream and time.
 *
 * @param {HTMLElement} root
 * @param {AbortSignal} signal
 */
async function chooser(root, signal) {
  const text = strings.moment;
  fill(root, pageHead(text.title), waiting(strings.loading));
  const known = await catalogue().catch(() => []);
  if (signal.aborted) return;
  const held = known.filter((stream) => stream.last);
  if (!held.length) {
    fill(root, pageHead(text.title), empty(strings.streams.none, strings.streams.noneHow));
    return;
  }
  const field = streamsField(
    held.map((stream) => stream.stream_id),
    [held[0].stream_id],
    { one: true, label: text.stream },
  );
  const time = h('input', { type: 'datetime-local', step: '1', required: true, value: clock.toLocal(held[0].last) });
  const form = h(
    'form',
    { class: 'card stack narrow' },
    field.element,
    labelled(text.time, time, strings.fields.zone(clock.zone())),
    h(
      'div',
      { class: 'row' },
      button(text.open, () => {}, { kind: 'primary', type: 'submit', icon: 'moment' }),
    ),
  );
  field.element.querySelector('select')?.addEventListener('change', () => {
    time.value = clock.toLocal(held.find((stream) => stream.stream_id === field.value()[0])?.last);
  });
  form.addEventListener('submit', (event) => {
    event.preventDefault();
    go('moment', { stream: field.value()[0], at: clock.fromLocal(time.value) });
  });
  fill(root, pageHead(text.title), h('p', { class: 'soft page-note' }, text.note), form);
}

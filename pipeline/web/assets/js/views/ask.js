/**
 * A question, its answer as it comes, and the frames that it rests on.
 *
 * The address `#/ask?id=…` shows a question of the history. A connection that breaks while the answer is written does not
 * lose it: the server goes on, and the page asks for the finished answer.
 */

import { ApiError, events, get, own, thumbnail } from '../api.js';
import { catalogue, newest } from '../catalogue.js';
import * as clock from '../clock.js';
import { button, fill, h, icon, labelled, linkButton } from '../dom.js';
import { pageHead, photo, streamsField, windowField } from '../fields.js';
import { heatmap } from '../heatmap.js';
import { pause } from '../jobs.js';
import { count, spoken, when } from '../moments.js';
import { dialog, explain, left, notices, problem, waiting } from '../notices.js';
import { watch } from '../player.js';
import { href, settle } from '../router.js';
import { may, session } from '../session.js';
import { setView } from '../shortcuts.js';
import { strings } from '../strings.js';
import { Timeline } from '../timeline.js';

const SHOWN = 12;
const RESUME_EVERY = 1500;
const RESUME_FOR = 400;

/** @typedef {import('../types.js').Selected} Selected */
/** @typedef {import('../types.js').Answer} Answer */
/** @typedef {import('../types.js').Question} Question */

/**
 * @param {HTMLElement} root
 * @param {URLSearchParams} params
 * @param {{signal: AbortSignal}} context
 */
export async function ask(root, params, { signal }) {
  const text = strings.ask;
  const form = h('form', { class: 'ask-form card stack' });
  const result = h('section', { class: 'ask-result', 'aria-label': text.result });
  fill(root, pageHead(text.title, linkButton(text.history, href('history'), { icon: 'history', kind: 'quiet' })), form, result);
  const known = await catalogue().catch(() => []);
  if (signal.aborted) return;
  /** @type {Question|null} */
  let past = null;
  const id = params.get('id');
  if (id) {
    fill(result, waiting(strings.loading));
    try {
      past = await get(`/questions/${encodeURIComponent(id)}`, {}, signal);
    } catch (error) {
      if (!left(error)) fill(result, problem(error));
    }
    if (signal.aborted) return;
  }
  drawForm(form, result, params, past, known, signal);
  if (past) await showPast(result, past, signal);
}

/**
 * @param {HTMLFormElement} form
 * @param {HTMLElement} result
 * @param {URLSearchParams} params
 * @param {Question|null} past
 * @param {import('../types.js').Stream[]} known
 * @param {AbortSignal} signal
 */
function drawForm(form, result, params, past, known, signal) {
  const text = strings.ask;
  const question = h('textarea', { rows: '2', required: true, maxlength: '2000', placeholder: text.placeholder });
  question.value = past?.question ?? params.get('question') ?? '';
  const options = h('textarea', { rows: '3', placeholder: text.optionsPlaceholder });
  options.value = (past?.options ?? params.getAll('options')).join('\n');
  const streams = streamsField(known.map((stream) => stream.stream_id), past?.streams ?? params.getAll('streams'));
  const window = windowField(past?.start ?? params.get('start'), past?.end ?? params.get('end'), { latest: newest(known, []) });
  const k = h('input', { type: 'number', min: '1', max: '512', placeholder: text.fromProfile });
  const most = h('input', { type: 'number', min: '1', max: '100000', placeholder: text.fromProfile });
  /** @type {AbortController|null} */
  let running = null;
  const stop = button(text.stop, () => running?.abort(), { kind: 'quiet' });
  const send = button(text.send, () => {}, { kind: 'primary', icon: 'ask', type: 'submit' });
  stop.hidden = true;
  const down = session().model === 'down';
  fill(
    form,
    labelled(text.question, question),
    h(
      'div',
      { class: 'ask-grid' },
      labelled(text.options, options, text.optionsHint),
      h('div', { class: 'stack' }, streams.element, h('details', { class: 'more' }, h('summary', null, text.advanced), h('div', { class: 'pair' }, labelled(text.k, k), labelled(text.most, most)))),
      window.element,
    ),
    h('div', { class: 'row' }, send, stop, h('span', { class: 'hint' }, text.sendHint)),
    down ? h('p', { class: 'problem' }, icon('warning'), h('span', null, text.down)) : null,
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    if (running || !question.value.trim()) return;
    running = new AbortController();
    const leave = () => running?.abort();
    signal.addEventListener('abort', leave);
    stop.hidden = false;
    send.disabled = true;
    const lines = options.value.split('\n').map((line) => line.trim()).filter(Boolean);
    const body = {
      question: question.value.trim(),
      options: lines.length ? lines : undefined,
      streams: streams.value().length ? streams.value() : undefined,
      ...window.value(),
      k: k.value ? Number(k.value) : undefined,
      max_frames: most.value ? Number(most.value) : undefined,
    };
    await run(result, body, running.signal, signal);
    signal.removeEventListener('abort', leave);
    running = null;
    stop.hidden = true;
    send.disabled = false;
  });
  question.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  setView([
    { keys: ['/'], text: text.keys.question, act: () => question.focus() },
    { keys: ['t'], text: text.keys.timeline, act: () => { const canvas = result.querySelector('canvas'); if (canvas) canvas.focus(); } },
  ]);
  if (!past && !matchMedia('(pointer: coarse)').matches) question.focus();
}

/**
 * @param {HTMLElement} result
 * @param {any} body
 * @param {AbortSignal} stop ends the question
 * @param {AbortSignal} signal ends the view
 */
async function run(result, body, stop, signal) {
  const text = strings.ask;
  const state = h('div', { class: 'ask-state' }, waiting(text.selecting));
  const answer = h('div', { class: 'answer', 'aria-live': 'polite' });
  const proof = h('div', { class: 'stack' });
  fill(result, h('div', { class: 'card stack' }, h('h2', null, body.question), answer, state), proof);
  let written = '';
  /** @type {string|null} */
  let id = null;
  let finished = false;
  try {
    for await (const { event, data } of events('/ask', body, stop)) {
      if (event === 'selected') {
        id = data.id ?? id;
        if (id) settle('ask', { id });
        showSelected(proof, data, body.question, id, signal);
        fill(state, waiting(text.reading(count(data.window_frames))));
      } else if (event === 'text') {
        written += data.text ?? data;
        fill(answer, h('p', { class: 'answer-text writing' }, written));
      } else if (event === 'answer') {
        finished = true;
        fill(state);
        if (data.id && data.id !== id) settle('ask', { id: data.id });
        showAnswer(answer, data, body.options);
      } else if (event === 'error') {
        finished = true;
        fill(state, problem(data, () => run(result, body, stop.aborted ? signal : stop, signal)));
      }
    }
    if (!finished) throw new ApiError({ detail: strings.errors.cut }, 0);
  } catch (error) {
    if (signal.aborted) return;
    if (left(error)) fill(state, h('p', { class: 'hint' }, text.stopped));
    else if (error instanceof ApiError && error.offline && id) await resume(state, answer, proof, id, body, signal);
    else fill(state, problem(error, () => run(result, body, signal, signal)));
  }
}

/**
 * Ask for a finished answer after the connection broke.
 *
 * @param {HTMLElement} state
 * @param {HTMLElement} answer
 * @param {HTMLElement} proof
 * @param {string} id
 * @param {any} body
 * @param {AbortSignal} signal
 */
async function resume(state, answer, proof, id, body, signal) {
  const text = strings.ask;
  fill(state, h('div', { class: 'problem', role: 'alert' }, icon('warning'), h('p', null, text.cut)), waiting(text.resuming));
  try {
    for (let tries = 0; tries < RESUME_FOR; tries += 1) {
      await pause(RESUME_EVERY, signal);
      /** @type {Question} */
      let question;
      try {
        question = await get(`/questions/${encodeURIComponent(id)}`, {}, signal);
      } catch (error) {
        if (error instanceof ApiError && (error.offline || error.status >= 500)) continue;
        throw error;
      }
      if (question.answer) {
        fill(state);
        showAnswer(answer, question.answer, body.options);
        if (!proof.childElementCount && question.selected) showSelected(proof, question.selected, body.question, id, signal);
        return;
      }
      if (question.error || question.state === 'failed') {
        fill(state, problem(question.error ?? text.failed));
        return;
      }
    }
    fill(state, problem(text.lost));
  } catch (error) {
    if (!left(error)) fill(state, problem(error));
  }
}

/**
 * @param {HTMLElement} result
 * @param {Question} past
 * @param {AbortSignal} signal
 */
async function showPast(result, past, signal) {
  const answer = h('div', { class: 'answer' });
  const state = h('div', { class: 'ask-state' });
  const proof = h('div', { class: 'stack' });
  fill(result, h('div', { class: 'card stack' }, h('h2', null, past.question), h('p', { class: 'hint' }, strings.ask.askedAt, ' ', when(past.asked_at)), answer, state), proof);
  if (past.selected) showSelected(proof, past.selected, past.question, past.id, signal);
  if (past.answer) showAnswer(answer, past.answer, past.options ?? undefined);
  else if (past.error) fill(state, problem(past.error));
  else await resume(state, answer, proof, past.id, { question: past.question, options: past.options }, signal);
}

/**
 * @param {HTMLElement} place
 * @param {Answer} data
 * @param {string[]|undefined} options
 */
function showAnswer(place, data, options) {
  const text = strings.ask;
  const shares = Object.entries(data.probabilities ?? {});
  const chosen = data.option ?? data.answer;
  const seconds = Object.entries(data.timings_seconds ?? {});
  const total = data.timings_seconds?.total ?? seconds.reduce((sum, [, value]) => sum + value, 0);
  fill(
    place,
    shares.length
      ? h(
          'ul',
          { class: 'options', 'aria-label': text.optionsLabel },
          shares.map(([name, share]) =>
            h(
              'li',
              { class: name === chosen ? 'option chosen' : 'option' },
              name === chosen ? icon('check') : null,
              h('span', { class: 'option-name' }, name, name === chosen ? h('span', { class: 'sr' }, ` (${text.chosen})`) : null),
              h('span', { class: 'option-share' }, `${Math.round(share * 100)} %`),
              h('i', { 'aria-hidden': 'true', style: { width: `${share * 100}%` } }),
            ),
          ),
        )
      : h('p', { class: 'answer-text' }, data.answer),
    shares.length && !options?.includes(data.answer) && data.answer !== chosen ? h('p', { class: 'answer-text' }, data.answer) : null,
    h('p', { class: 'hint figures' }, text.figures(count(data.frames), count(data.visual_tokens), total), seconds.length > 1 ? ` (${seconds.filter(([name, value]) => name !== 'total' && value >= 0.005).map(([name, value]) => `${name.replaceAll('_', ' ')} ${value.toFixed(2)}`).join(', ')})` : ''),
    notices(data.notices),
    may('export') && data.id ? h('div', { class: 'row' }, linkButton(text.evidence, href('exports', { kind: 'evidence', question_id: data.id }), { icon: 'exports', small: true })) : null,
  );
}

/**
 * The curve of each stream, whatever shape the server sends it in.
 *
 * @param {Selected} selected
 * @returns {[string, import('../types.js').Curve][]}
 */
function curves(selected) {
  const relevance = selected.relevance;
  if (Array.isArray(relevance)) return relevance.map((curve) => [curve.stream_id, curve]);
  if (Array.isArray(relevance.times)) {
    const name = selected.keyframes[0]?.stream_id ?? '';
    return [[name, /** @type {import('../types.js').Curve} */ (relevance)]];
  }
  return Object.entries(/** @type {Record<string, import('../types.js').Curve>} */ (relevance));
}

/**
 * @param {HTMLElement} place
 * @param {Selected} selected
 * @param {string} question
 * @param {string|null} id
 * @param {AbortSignal} signal
 */
function showSelected(place, selected, question, id, signal) {
  const text = strings.ask;
  /** @type {Map<string, string>} */
  const names = new Map();
  for (const frame of selected.keyframes) names.set(`${frame.stream_id} ${clock.millis(frame.captured_at)}`, frame.captured_at);
  const lanes = curves(selected).map(([stream, curve]) => {
    for (const at of curve.times) names.set(`${stream} ${clock.millis(at)}`, at);
    const order = curve.times.map((at, i) => /** @type {[number, number]} */ ([clock.millis(at), curve.scores[i]])).sort((a, b) => a[0] - b[0]);
    return {
      stream,
      times: order.map(([at]) => at),
      scores: order.map(([, score]) => score),
      marks: selected.keyframes.filter((frame) => frame.stream_id === stream).map((frame) => clock.millis(frame.captured_at)).sort((a, b) => a - b),
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
          else explainFrame(place.lane.stream, exact, question, id);
        },
      })
    : null;
  signal.addEventListener('abort', () => timeline?.destroy());
  const ranked = [...selected.keyframes].sort((a, b) => b.score - a.score);
  const several = new Set(ranked.map((frame) => frame.stream_id)).size > 1;
  const grid = h('div', { class: 'frames' });
  const figure = (/** @type {import('../types.js').Keyframe} */ frame) =>
    h(
      'figure',
      { class: 'keyframe' },
      h(
        'button',
        { type: 'button', class: 'keyframe-play', 'aria-label': text.playKeyframe(frame.stream_id, spoken(frame.captured_at)), on: { click: () => watch(frame.stream_id, frame.captured_at) } },
        photo(own(frame.thumbnail) ?? thumbnail(frame.stream_id, frame.captured_at), '', { lazy: true }),
        h('span', { class: 'play-sign', 'aria-hidden': 'true' }, icon('play')),
      ),
      h('figcaption', null, h('span', null, several ? h('b', null, frame.stream_id, ' ') : null, when(frame.captured_at, { date: false, stacked: true })), h('span', { class: 'soft', title: text.relevance }, frame.score.toFixed(3))),
    );
  const draw = (/** @type {number} */ most) => fill(grid, ranked.slice(0, most).map(figure));
  draw(SHOWN);
  const more = ranked.length > SHOWN
    ? button(text.moreKeyframes(ranked.length - SHOWN), () => { draw(Infinity); more?.remove(); }, { small: true, kind: 'quiet' })
    : null;
  const redraw = () => draw(more?.isConnected ? SHOWN : Infinity);
  document.addEventListener('zone', redraw, { signal });
  fill(
    place,
    h(
      'div',
      { class: 'card stack' },
      h('h3', null, text.rests(count(ranked.length), count(selected.window_frames))),
      timeline?.element ?? null,
      h('div', { class: 'legend' }, h('span', null, h('b', { class: 'swatch heat' }), text.legendHeat), h('span', null, h('b', { class: 'swatch key' }), text.legendKey), h('span', { class: 'legend-keys' }, text.legendKeys)),
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
 * @param {string} question
 * @param {string|null} id
 */
async function explainFrame(stream, at, question, id) {
  const text = strings.ask;
  const control = new AbortController();
  const body = h('div', { class: 'stack' });
  const closed = dialog(text.frame(stream, spoken(at)), () => [body], { wide: true });
  closed.then(() => control.abort());
  try {
    fill(body, waiting(strings.loading));
    const map = await heatmap(stream, at, question, id, control.signal);
    fill(
      body,
      map,
      h('p', { class: 'hint' }, text.heatHow),
      h('div', { class: 'row end' }, button(text.playHere, () => { control.abort(); watchInstead(body, stream, at); }, { icon: 'play', small: true }), linkButton(text.open, href('moment', { stream, at }), { icon: 'moment', small: true })),
    );
  } catch (error) {
    if (!left(error)) fill(body, h('img', { class: 'whole', src: thumbnail(stream, at, 640), alt: spoken(at) }), h('p', { class: 'hint' }, explain(error)));
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

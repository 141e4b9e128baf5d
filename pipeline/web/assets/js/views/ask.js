/**
 * A question, its answer as it comes, and the frames that it rests on.
 *
 * The address `#/ask?id=…` shows a question of the history. A connection that breaks while the answer is written does not
 * lose it: the server goes on, and the page asks for the finished answer.
 */

import { ApiError, events, get } from '../api.js';
import { catalogue, newest } from '../catalogue.js';
import { button, fill, h, icon, labelled, linkButton } from '../dom.js';
import { showEvidence } from '../evidence.js';
import { pageHead, streamsField, windowField } from '../fields.js';
import { pause } from '../jobs.js';
import { count, when } from '../moments.js';
import { left, notices, problem, waiting } from '../notices.js';
import { href, settle } from '../router.js';
import { may, session } from '../session.js';
import { setView } from '../shortcuts.js';
import { strings } from '../strings.js';

const RESUME_EVERY = 1500;
const RESUME_FOR = 400;

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
  fill(
    root,
    pageHead(text.title, linkButton(text.history, href('history'), { icon: 'history', kind: 'quiet' })),
    form,
    result,
  );
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
  const streams = streamsField(
    known.map((stream) => stream.stream_id),
    past?.streams ?? params.getAll('streams'),
  );
  const window = windowField(past?.start ?? params.get('start'), past?.end ?? params.get('end'), {
    latest: newest(known, []),
  });
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
      h(
        'div',
        { class: 'stack' },
        streams.element,
        h(
          'details',
          { class: 'more' },
          h('summary', null, text.advanced),
          h('div', { class: 'pair' }, labelled(text.k, k), labelled(text.most, most)),
        ),
      ),
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
    const lines = options.value
      .split('\n')
      .map((line) => line.trim())
      .filter(Boolean);
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
    {
      keys: ['t'],
      text: text.keys.timeline,
      act: () => {
        const canvas = result.querySelector('canvas');
        if (canvas) canvas.focus();
      },
    },
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
        showEvidence(proof, data, id, signal);
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
        fill(
          state,
          problem(data, () => run(result, body, stop.aborted ? signal : stop, signal)),
        );
      }
    }
    if (!finished) throw new ApiError({ detail: strings.errors.cut }, 0);
  } catch (error) {
    if (signal.aborted) return;
    if (left(error)) fill(state, h('p', { class: 'hint' }, text.stopped));
    else if (error instanceof ApiError && error.offline && id) await resume(state, answer, proof, id, body, signal);
    else
      fill(
        state,
        problem(error, () => run(result, body, signal, signal)),
      );
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
  fill(
    state,
    h('div', { class: 'problem', role: 'alert' }, icon('warning'), h('p', null, text.cut)),
    waiting(text.resuming),
  );
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
        if (!proof.childElementCount && question.selected) showEvidence(proof, question.selected, id, signal);
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
  fill(
    result,
    h(
      'div',
      { class: 'card stack' },
      h('h2', null, past.question),
      h('p', { class: 'hint' }, strings.ask.askedAt, ' ', when(past.asked_at)),
      answer,
      state,
    ),
    proof,
  );
  if (past.selected) showEvidence(proof, past.selected, past.id, signal);
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
              h(
                'span',
                { class: 'option-name' },
                name,
                name === chosen ? h('span', { class: 'sr' }, ` (${text.chosen})`) : null,
              ),
              h('span', { class: 'option-share' }, `${Math.round(share * 100)} %`),
              h('i', { 'aria-hidden': 'true', style: { width: `${share * 100}%` } }),
            ),
          ),
        )
      : h('p', { class: 'answer-text' }, data.answer),
    shares.length && !options?.includes(data.answer) && data.answer !== chosen
      ? h('p', { class: 'answer-text' }, data.answer)
      : null,
    h(
      'p',
      { class: 'hint figures' },
      text.figures(count(data.frames), count(data.visual_tokens), total),
      seconds.length > 1
        ? ` (${seconds
            .filter(([name, value]) => name !== 'total' && value >= 0.005)
            .map(([name, value]) => `${name.replaceAll('_', ' ')} ${value.toFixed(2)}`)
            .join(', ')})`
        : '',
    ),
    notices(data.notices),
    may('export') && data.id
      ? h(
          'div',
          { class: 'row' },
          linkButton(text.evidence, href('exports', { kind: 'evidence', question_id: data.id }), {
            icon: 'exports',
            small: true,
          }),
        )
      : null,
  );
}

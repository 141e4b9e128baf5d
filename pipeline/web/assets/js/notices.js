/** What the page says beside its content: messages that pass, problems with a way out, dialogs, and waiting. */

import { ApiError } from './api.js';
import { button, fill, h, icon, unique } from './dom.js';
import { strings } from './strings.js';

/**
 * Show a message for a few seconds; screen readers read it out.
 *
 * @param {string} text
 * @param {'good'|'bad'|''} [mood]
 */
export function toast(text, mood = '') {
  let tray = document.getElementById('toasts');
  if (!tray) {
    tray = h('div', { id: 'toasts', role: 'status', 'aria-live': 'polite' });
    document.body.append(tray);
  }
  const note = h('p', { class: `toast ${mood}` }, text);
  tray.append(note);
  setTimeout(() => note.remove(), 6000);
}

/**
 * The text of an error, for a person.
 *
 * @param {unknown} error
 * @returns {string}
 */
export function explain(error) {
  if (error instanceof ApiError && error.status === 429 && error.retryAfter) {
    return strings.errors.wait(error.retryAfter);
  }
  if (error instanceof Error) return error.message;
  if (error && typeof error === 'object') {
    const problem = /** @type {import('./types.js').Problem} */ (error);
    return problem.detail || problem.title || strings.errors.unknown;
  }
  return typeof error === 'string' && error ? error : strings.errors.unknown;
}

/**
 * Whether an error is only that the person went elsewhere.
 *
 * @param {unknown} error
 */
export function left(error) {
  return error instanceof DOMException && error.name === 'AbortError';
}

/**
 * A problem, with a button that tries again.
 *
 * @param {unknown} error
 * @param {() => void} [again]
 * @returns {HTMLElement}
 */
export function problem(error, again) {
  const id = error instanceof ApiError ? error.problem.request_id : '';
  return h(
    'div',
    { class: 'problem', role: 'alert' },
    icon('warning'),
    h('div', null, h('p', null, explain(error)), id ? h('p', { class: 'hint' }, strings.errors.request(id)) : null),
    again ? button(strings.again, again, { small: true }) : null,
  );
}

/** @type {{texts: string[]}} */
const shown = { texts: [] };

/**
 * Sentences that the page shows above the view, so that no result repeats them.
 *
 * @param {string[]} texts
 */
export function showAbove(texts) {
  shown.texts = texts;
  return sentences(texts);
}

/**
 * Sentences of the server beside a result.
 *
 * @param {string[]|null|undefined} texts
 */
export function notices(texts) {
  return sentences((texts ?? []).filter((text) => !shown.texts.includes(text)));
}

/** @param {string[]} texts */
function sentences(texts) {
  if (!texts.length) return null;
  return h(
    'ul',
    { class: 'notices' },
    texts.map((text) => h('li', null, text)),
  );
}

/**
 * A place where there is nothing, and why.
 *
 * @param {string} title
 * @param {string} [text]
 * @param {...(Node|null)} more
 */
export function empty(title, text, ...more) {
  return h('div', { class: 'empty' }, h('p', { class: 'empty-title' }, title), text ? h('p', null, text) : null, more);
}

/**
 * Waiting.
 *
 * @param {string} text
 */
export function waiting(text) {
  return h('p', { class: 'waiting', role: 'status' }, h('span', { class: 'spinner', 'aria-hidden': 'true' }), text);
}

/**
 * Open a dialog. It closes with Escape, its button, or a click beside it.
 *
 * @param {string} title
 * @param {(close: () => void) => (Node|string|null)[]} content
 * @param {{wide?: boolean}} [options]
 * @returns {Promise<void>} resolved when it is closed
 */
export function dialog(title, content, options = {}) {
  return new Promise((resolve) => {
    const id = unique('dialog');
    const close = () => box.close();
    const box = h('dialog', { class: options.wide ? 'dialog wide' : 'dialog', 'aria-labelledby': id });
    const body = h('div', { class: 'dialog-body' });
    box.append(
      h(
        'header',
        { class: 'dialog-head' },
        h('h2', { id }, title),
        button(strings.close, close, { icon: 'close', kind: 'quiet', bare: true }),
      ),
      body,
    );
    fill(body, content(close));
    box.addEventListener('click', (event) => {
      if (event.target === box) close();
    });
    const away = () => close();
    window.addEventListener('hashchange', away);
    box.addEventListener('close', () => {
      window.removeEventListener('hashchange', away);
      box.remove();
      resolve();
    });
    document.body.append(box);
    box.showModal();
  });
}

/**
 * Ask before something that has consequences.
 *
 * @param {string} title
 * @param {string} text
 * @param {string} action text of the button that does it
 * @param {{reason?: string, danger?: boolean}} [options] `reason`: label of a reason that must be given
 * @returns {Promise<string|null>} the reason, '' without one; null if the person does not want it
 */
export async function confirm(title, text, action, options = {}) {
  /** @type {string|null} */
  let result = null;
  await dialog(title, (close) => {
    const reason = options.reason
      ? h('input', { type: 'text', required: true, maxlength: 500, id: unique('reason') })
      : null;
    const form = h(
      'form',
      {
        class: 'stack',
        on: {
          submit: (/** @type {Event} */ event) => {
            event.preventDefault();
            result = reason ? reason.value.trim() : '';
            if (reason && !result) {
              result = null;
              return;
            }
            close();
          },
        },
      },
      h('p', null, text),
      reason ? h('div', { class: 'field' }, h('label', { for: reason.id }, options.reason), reason) : null,
      h(
        'div',
        { class: 'row end' },
        button(strings.cancel, close, { kind: 'quiet' }),
        button(action, () => {}, { kind: options.danger ? 'danger' : 'primary', type: 'submit' }),
      ),
    );
    return [form];
  });
  return result;
}

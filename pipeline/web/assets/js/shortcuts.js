/** Keys of the page and of the view that is open. None works while a person types, and none needs a modifier. */

/** @typedef {{keys: string[], text: string, act: (event: KeyboardEvent) => void}} Shortcut */

/** @type {{page: Shortcut[], view: Shortcut[], prefix: string}} */
const state = { page: [], view: [], prefix: '' };

/**
 * Keys that work everywhere.
 *
 * @param {Shortcut[]} shortcuts
 */
export function setPage(shortcuts) {
  state.page = shortcuts;
}

/**
 * Keys of the view that is open; they go with it.
 *
 * @param {Shortcut[]} shortcuts
 */
export function setView(shortcuts) {
  state.view = shortcuts;
}

/** The keys for the help. */
export function list() {
  return { page: state.page, view: state.view };
}

/** @param {EventTarget|null} target */
function typing(target) {
  if (!(target instanceof HTMLElement)) return false;
  if (target.closest('[contenteditable]')) return true;
  if (target instanceof HTMLInputElement)
    return !['checkbox', 'radio', 'button', 'submit', 'file'].includes(target.type);
  return target instanceof HTMLTextAreaElement || target instanceof HTMLSelectElement;
}

/** Start to listen. */
export function start() {
  document.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing(event.target)) {
      if (event.key === 'Escape' && event.target instanceof HTMLElement) event.target.blur();
      return;
    }
    const inDialog = document.querySelector('dialog[open]') !== null;
    if (
      event.key === ' ' &&
      event.target instanceof HTMLElement &&
      event.target.closest('button, a, summary, [role=slider], input')
    ) {
      return;
    }
    const key = state.prefix ? `${state.prefix} ${event.key}` : event.key;
    state.prefix = '';
    for (const shortcut of inDialog ? [] : [...state.view, ...state.page]) {
      if (shortcut.keys.includes(key)) {
        event.preventDefault();
        shortcut.act(event);
        return;
      }
    }
    if (event.key === 'g' && !inDialog) {
      state.prefix = 'g';
      setTimeout(() => {
        state.prefix = '';
      }, 1500);
    }
  });
}

/**
 * Elements made from data. Text is always set as text, never parsed as HTML; styles go through the CSSOM, because the
 * page's content security policy allows no style attribute.
 */

/** @typedef {Node|string|number|null|undefined|false} Child */

/**
 * Properties of an element: `class`, `on` (listeners by event), `style` (CSS properties), `data` (data attributes);
 * everything else is an attribute, absent if null or false and empty if true.
 *
 * @typedef {object} Props
 * @property {string} [class]
 * @property {Record<string, (event: any) => void>} [on]
 * @property {Record<string, string>} [style]
 * @property {Record<string, string>} [data]
 */

/**
 * Make an element.
 *
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {(Props & Record<string, any>)|null} [props]
 * @param {...(Child|Child[])} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function h(tag, props, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'class') element.className = value;
    else if (name === 'on') {
      for (const [event, listener] of Object.entries(value))
        element.addEventListener(event, /** @type {any} */ (listener));
    } else if (name === 'style') {
      for (const [key, text] of Object.entries(value)) element.style.setProperty(key, String(text));
    } else if (name === 'data') {
      for (const [key, text] of Object.entries(value)) element.dataset[key] = String(text);
    } else element.setAttribute(name, value === true ? '' : String(value));
  }
  element.append(...nodes(children));
  return element;
}

/**
 * @param {(Child|Child[])[]} children
 * @returns {(Node|string)[]}
 */
function nodes(children) {
  /** @type {(Node|string)[]} */
  const result = [];
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    result.push(child instanceof Node ? child : String(child));
  }
  return result;
}

/**
 * Replace what is in an element.
 *
 * @param {Element} element
 * @param {...(Child|Child[])} children
 */
export function fill(element, ...children) {
  element.replaceChildren(...nodes(children));
}

const SVG = 'http://www.w3.org/2000/svg';

/** Paths of the icons, in a square of 24, drawn with a line of 1.75. */
const ICONS = {
  streams:
    'M3 7.5A2.5 2.5 0 0 1 5.5 5h8A2.5 2.5 0 0 1 16 7.5v9a2.5 2.5 0 0 1-2.5 2.5h-8A2.5 2.5 0 0 1 3 16.5zM16 10.5l5-3v9l-5-3',
  search: 'M11 18a7 7 0 1 0 0-14 7 7 0 0 0 0 14zM20.5 20.5 16 16',
  ask: 'M20 11.5a7.5 7.5 0 0 1-7.5 7.5H4l1.9-3.1A7.5 7.5 0 1 1 20 11.5zM10.3 9.6a2.2 2.2 0 1 1 3.2 2c-.7.4-1 .8-1 1.5M12.5 15.6v.1',
  moment: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM12 7v5.2l3.4 2',
  exports: 'M12 3.5v11M7.5 10.5l4.5 4.5 4.5-4.5M4 17.5v1.3A2.2 2.2 0 0 0 6.2 21h11.6a2.2 2.2 0 0 0 2.2-2.2v-1.3',
  standing: 'M6 10a6 6 0 1 1 12 0c0 5 2 6.5 2 6.5H4S6 15 6 10zM10 20a2.2 2.2 0 0 0 4 0',
  history: 'M4 12a8 8 0 1 0 2.6-5.9L4 8.5M4 4v4.5h4.5M12 8v4.3l3 1.8',
  admin:
    'M9 11a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM2.5 20a6.5 6.5 0 0 1 13 0M16 4.3a3.5 3.5 0 0 1 0 6.4M18.5 14.5A6.5 6.5 0 0 1 21.5 20',
  sun: 'M12 16.5a4.5 4.5 0 1 0 0-9 4.5 4.5 0 0 0 0 9zM12 2v2.2M12 19.8V22M2 12h2.2M19.8 12H22M4.9 4.9l1.6 1.6M17.5 17.5l1.6 1.6M4.9 19.1l1.6-1.6M17.5 6.5l1.6-1.6',
  moon: 'M20 14.3A8.3 8.3 0 0 1 9.7 4a8.3 8.3 0 1 0 10.3 10.3z',
  help: 'M12 21a9 9 0 1 0 0-18 9 9 0 0 0 0 18zM9.5 9.4a2.6 2.6 0 1 1 3.8 2.3c-.9.5-1.3 1-1.3 1.9M12 16.6v.1',
  close: 'M6 6l12 12M18 6 6 18',
  play: 'M7 4.8v14.4L19 12z',
  pause: 'M8 5v14M16 5v14',
  back: 'M15 5l-7 7 7 7',
  forward: 'M9 5l7 7-7 7',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  cross: 'M6.5 6.5l11 11M17.5 6.5l-11 11',
  dot: 'M12 17a5 5 0 1 0 0-10 5 5 0 0 0 0 10z',
  warning: 'M12 4 2.8 20h18.4zM12 10v4.5M12 17.3v.1',
  lock: 'M6.5 11h11A1.5 1.5 0 0 1 19 12.5v6a1.5 1.5 0 0 1-1.5 1.5h-11A1.5 1.5 0 0 1 5 18.5v-6A1.5 1.5 0 0 1 6.5 11zM8 11V8a4 4 0 0 1 8 0v3',
  picture:
    'M5.5 4h13A1.5 1.5 0 0 1 20 5.5v13a1.5 1.5 0 0 1-1.5 1.5h-13A1.5 1.5 0 0 1 4 18.5v-13A1.5 1.5 0 0 1 5.5 4zM4 16l4.5-4.5 4 4 2.5-2.5 5 5M15 9.2v.1',
  box: 'M4 8V5.5A1.5 1.5 0 0 1 5.5 4H8M16 4h2.5A1.5 1.5 0 0 1 20 5.5V8M20 16v2.5a1.5 1.5 0 0 1-1.5 1.5H16M8 20H5.5A1.5 1.5 0 0 1 4 18.5V16',
  trash: 'M4.5 7h15M9.5 7V4.5h5V7M6.5 7l1 13h9l1-13M10 11v5M14 11v5',
  bell: 'M6 10a6 6 0 1 1 12 0c0 5 2 6.5 2 6.5H4S6 15 6 10zM10 20a2.2 2.2 0 0 0 4 0',
  mute: 'M6 10a6 6 0 0 1 9.5-4.8M18 10c0 5 2 6.5 2 6.5H8M10 20a2.2 2.2 0 0 0 4 0M3.5 3.5l17 17',
  plus: 'M12 5v14M5 12h14',
  filter: 'M4 6h16M7 12h10M10 18h4',
  user: 'M12 12a4 4 0 1 0 0-8 4 4 0 0 0 0 8zM4.5 20.5a7.5 7.5 0 0 1 15 0',
  out: 'M14 4h4.5A1.5 1.5 0 0 1 20 5.5v13a1.5 1.5 0 0 1-1.5 1.5H14M10 8l-4 4 4 4M6 12h9',
  sound: 'M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM15.5 9a4.2 4.2 0 0 1 0 6M18 6.5a7.8 7.8 0 0 1 0 11',
  silent: 'M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM16 9.5l5 5M21 9.5l-5 5',
  full: 'M4 9V4h5M20 9V4h-5M4 15v5h5M20 15v5h-5',
  heat: 'M12 21a6 6 0 0 0 6-6c0-4.5-3.5-5.5-4-10-2.8 1.2-4 3.6-4 6-1-.5-1.5-1.5-1.5-2.5C7 10 6 12.4 6 15a6 6 0 0 0 6 6z',
};

/** @typedef {keyof typeof ICONS} IconName */

/**
 * A picture beside a word, which assistive technology does not read.
 *
 * @param {IconName} name
 * @returns {SVGElement}
 */
export function icon(name) {
  const svg = /** @type {SVGElement} */ (document.createElementNS(SVG, 'svg'));
  svg.setAttribute('viewBox', '0 0 24 24');
  svg.setAttribute('class', 'icon');
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', ICONS[name]);
  svg.append(path);
  return svg;
}

let numbers = 0;

/**
 * An id that no other element of the page has.
 *
 * @param {string} prefix
 * @returns {string}
 */
export function unique(prefix) {
  numbers += 1;
  return `${prefix}-${numbers}`;
}

/**
 * A control below its label.
 *
 * @param {string} label
 * @param {HTMLElement} control
 * @param {string} [hint]
 * @returns {HTMLDivElement}
 */
export function labelled(label, control, hint) {
  control.id ||= unique('field');
  const note = hint ? h('p', { class: 'hint', id: `${control.id}-hint` }, hint) : null;
  if (note) control.setAttribute('aria-describedby', note.id);
  return h('div', { class: 'field' }, h('label', { for: control.id }, label), control, note);
}

/**
 * A button.
 *
 * @param {string} text
 * @param {() => void} act
 * @param {{icon?: IconName, kind?: 'primary'|'quiet'|'danger', small?: boolean, bare?: boolean, key?: string, type?: string, disabled?: boolean}} [options]
 *   `bare` shows the icon alone; the text stays the name.
 * @returns {HTMLButtonElement}
 */
export function button(text, act, options = {}) {
  const kinds = ['button', options.kind ?? '', options.small ? 'small' : '', options.bare ? 'bare' : ''];
  return h(
    'button',
    {
      class: kinds.filter(Boolean).join(' '),
      type: options.type ?? 'button',
      disabled: options.disabled,
      'aria-label': options.bare ? text : null,
      title: options.bare ? (options.key ? `${text} (${options.key})` : text) : null,
      'aria-keyshortcuts': options.key,
      on: { click: act },
    },
    options.icon ? icon(options.icon) : null,
    options.bare ? null : h('span', null, text),
  );
}

/**
 * A link that looks like a button.
 *
 * @param {string} text
 * @param {string} href
 * @param {{icon?: IconName, kind?: 'primary'|'quiet', small?: boolean, bare?: boolean, download?: boolean}} [options]
 * @returns {HTMLAnchorElement}
 */
export function linkButton(text, href, options = {}) {
  const kinds = ['button', options.kind ?? '', options.small ? 'small' : '', options.bare ? 'bare' : ''];
  return h(
    'a',
    {
      class: kinds.filter(Boolean).join(' '),
      href,
      download: options.download,
      'aria-label': options.bare ? text : null,
      title: options.bare ? text : null,
    },
    options.icon ? icon(options.icon) : null,
    options.bare ? null : h('span', null, text),
  );
}

/**
 * Call `act` once nothing has called for `milliseconds`.
 *
 * @template {any[]} A
 * @param {(...args: A) => void} act
 * @param {number} milliseconds
 * @returns {(...args: A) => void}
 */
export function settled(act, milliseconds) {
  /** @type {ReturnType<typeof setTimeout>|undefined} */
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...args), milliseconds);
  };
}

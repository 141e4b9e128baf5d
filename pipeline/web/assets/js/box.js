/**
 * Boxes drawn on a picture, with the pointer or with the keyboard: Enter on the picture makes one, arrow keys move it,
 * Shift with arrow keys changes its size, Delete removes it.
 */

import { h } from './dom.js';
import { strings } from './strings.js';

const STEP = 0.02;
const LEAST = 0.02;

export class Boxes {
  /**
   * @param {{image: HTMLImageElement, most: number, change: (boxes: import('./types.js').Box[]) => void, label: string}} settings
   *   `image`: what is below the boxes; `most`: how many there may be, the next replaces the last
   */
  constructor(settings) {
    this.settings = settings;
    /** @type {{box: import('./types.js').Box, element: HTMLElement}[]} */
    this.list = [];
    /** @type {{x: number, y: number, entry: {box: import('./types.js').Box, element: HTMLElement}}|null} */
    this.drag = null;
    this.surface = h('div', {
      class: 'box-surface',
      tabindex: '0',
      role: 'group',
      'aria-label': settings.label,
      on: {
        pointerdown: (/** @type {PointerEvent} */ event) => this.begin(event),
        pointermove: (/** @type {PointerEvent} */ event) => this.move(event),
        pointerup: () => this.finish(),
        pointercancel: () => this.finish(),
        keydown: (/** @type {KeyboardEvent} */ event) => this.key(event),
      },
    });
    this.element = h('div', { class: 'boxes' }, settings.image, this.surface);
    // The whole picture fits into the dialog, in its own shape: shares of the surface are shares of the picture.
    const { image } = settings;
    const fit = () => {
      if (!image.naturalHeight) return;
      const ratio = image.naturalWidth / image.naturalHeight;
      this.element.style.setProperty('aspect-ratio', String(ratio));
      this.element.style.setProperty('max-width', `calc(52vh * ${ratio})`);
    };
    image.addEventListener('load', fit);
    fit();
  }

  /** The boxes as shares of the picture. */
  get boxes() {
    return this.list.map((entry) => entry.box);
  }

  /** Remove all boxes. */
  clear() {
    for (const entry of this.list) entry.element.remove();
    this.list = [];
    this.settings.change([]);
  }

  /**
   * Add a box.
   *
   * @param {import('./types.js').Box} box
   */
  add(box) {
    while (this.list.length >= this.settings.most) this.list.pop()?.element.remove();
    const element = h('div', { class: 'drawn-box', tabindex: '0', role: 'img' });
    const entry = { box, element };
    element.addEventListener('keydown', (event) => this.adjust(event, entry));
    this.list.push(entry);
    this.surface.append(element);
    this.show(entry);
    return entry;
  }

  /** @param {{box: import('./types.js').Box, element: HTMLElement}} entry */
  show(entry) {
    const [x0, y0, x1, y1] = entry.box;
    const style = entry.element.style;
    style.setProperty('left', `${x0 * 100}%`);
    style.setProperty('top', `${y0 * 100}%`);
    style.setProperty('width', `${(x1 - x0) * 100}%`);
    style.setProperty('height', `${(y1 - y0) * 100}%`);
    entry.element.setAttribute('aria-label', strings.boxes.box(this.list.indexOf(entry) + 1, entry.box));
  }

  /** @param {PointerEvent} event */
  place(event) {
    const box = this.surface.getBoundingClientRect();
    const inside = (/** @type {number} */ value) => Math.min(1, Math.max(0, value));
    return { x: inside((event.clientX - box.left) / box.width), y: inside((event.clientY - box.top) / box.height) };
  }

  /** @param {PointerEvent} event */
  begin(event) {
    if (event.button !== 0 || event.target !== this.surface) return;
    event.preventDefault();
    this.surface.focus({ preventScroll: true });
    this.surface.setPointerCapture(event.pointerId);
    const { x, y } = this.place(event);
    this.drag = { x, y, entry: this.add([x, y, x, y]) };
  }

  /** @param {PointerEvent} event */
  move(event) {
    if (!this.drag) return;
    const { x, y } = this.place(event);
    const from = this.drag;
    from.entry.box = [Math.min(x, from.x), Math.min(y, from.y), Math.max(x, from.x), Math.max(y, from.y)];
    this.show(from.entry);
  }

  finish() {
    if (!this.drag) return;
    const { entry } = this.drag;
    this.drag = null;
    const [x0, y0, x1, y1] = entry.box;
    if (x1 - x0 < LEAST || y1 - y0 < LEAST) this.remove(entry);
    else this.settings.change(this.boxes);
  }

  /** @param {{box: import('./types.js').Box, element: HTMLElement}} entry */
  remove(entry) {
    entry.element.remove();
    this.list = this.list.filter((each) => each !== entry);
    this.settings.change(this.boxes);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.target !== this.surface || event.key !== 'Enter') return;
    event.preventDefault();
    event.stopPropagation();
    this.add([0.35, 0.35, 0.65, 0.65]).element.focus();
    this.settings.change(this.boxes);
  }

  /**
   * @param {KeyboardEvent} event
   * @param {{box: import('./types.js').Box, element: HTMLElement}} entry
   */
  adjust(event, entry) {
    const dx = event.key === 'ArrowRight' ? STEP : event.key === 'ArrowLeft' ? -STEP : 0;
    const dy = event.key === 'ArrowDown' ? STEP : event.key === 'ArrowUp' ? -STEP : 0;
    if (event.key === 'Delete' || event.key === 'Backspace') {
      this.remove(entry);
      this.surface.focus();
    } else if (dx || dy) {
      let [x0, y0, x1, y1] = entry.box;
      if (event.shiftKey) {
        x1 = Math.min(1, Math.max(x0 + LEAST, x1 + dx));
        y1 = Math.min(1, Math.max(y0 + LEAST, y1 + dy));
      } else {
        const mx = Math.min(1 - x1, Math.max(-x0, dx));
        const my = Math.min(1 - y1, Math.max(-y0, dy));
        [x0, y0, x1, y1] = [x0 + mx, y0 + my, x1 + mx, y1 + my];
      }
      entry.box = [x0, y0, x1, y1];
      this.show(entry);
      this.settings.change(this.boxes);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/**
 * A list of any length of which only the visible part is in the document.
 *
 * Items have one height; as many stand beside each other as the width allows. The list follows the scroll position of
 * the page. It is a feed to assistive technology: arrow keys go from article to article.
 */

import { h } from './dom.js';

const SPARE = 2;
const PICTURES_AFTER = 90;

/**
 * @template T
 * @typedef {object} Settings
 * @property {string} label
 * @property {(item: T, index: number) => HTMLElement} render makes the article of an item
 * @property {(width: number) => {columns: number, height: number}} shape
 * @property {() => void} [more] called when the end comes into view
 * @property {(item: T, index: number, key: string) => void} [keys] other keys on an article
 */

/** @template T */
export class VirtualList {
  /** @param {Settings<T>} settings */
  constructor(settings) {
    this.settings = settings;
    /** @type {T[]} */
    this.items = [];
    /** @type {Map<number, HTMLElement>} */
    this.shown = new Map();
    this.columns = 1;
    this.height = 100;
    this.complete = false;
    this.element = h('div', { class: 'virtual', role: 'feed', 'aria-label': settings.label });
    this.frame = 0;
    this.width = 0;
    this.observer = new ResizeObserver(() => this.measure());
    this.observer.observe(this.element);
    this.onScroll = () => this.schedule();
    window.addEventListener('scroll', this.onScroll, { passive: true });
    window.addEventListener('resize', this.onScroll);
    this.element.addEventListener('keydown', (event) => this.onKey(event));
  }

  /** Forget everything and stop listening. */
  destroy() {
    this.observer.disconnect();
    window.removeEventListener('scroll', this.onScroll);
    window.removeEventListener('resize', this.onScroll);
    cancelAnimationFrame(this.frame);
  }

  /** @param {T[]} items */
  append(items) {
    for (const item of items) this.items.push(item);
    this.layOut();
  }

  /** @param {T[]} items */
  replace(items) {
    this.items = items.slice();
    this.clear();
    this.layOut();
  }

  clear() {
    for (const element of this.shown.values()) element.remove();
    this.shown.clear();
  }

  /**
   * Draw items anew that changed.
   *
   * @param {(item: T) => boolean} which
   */
  refresh(which) {
    for (const [index, element] of this.shown) {
      if (!which(this.items[index])) continue;
      const focused = element.contains(document.activeElement);
      const fresh = this.make(index);
      element.replaceWith(fresh);
      this.shown.set(index, fresh);
      if (focused) fresh.focus();
    }
  }

  measure() {
    const width = this.element.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.layOut();
  }

  layOut() {
    const width = this.element.clientWidth || this.width || 800;
    const { columns, height } = this.settings.shape(width);
    if (columns !== this.columns || height !== this.height) this.clear();
    this.columns = columns;
    this.height = height;
    this.element.style.setProperty('height', `${Math.ceil(this.items.length / columns) * height}px`);
    this.element.setAttribute('aria-busy', 'false');
    this.draw();
  }

  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.draw();
    });
  }

  draw() {
    if (!this.element.isConnected) return;
    const top = this.element.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor(-top / this.height) - SPARE) * this.columns;
    const last = Math.min(
      this.items.length,
      (Math.ceil((window.innerHeight - top) / this.height) + SPARE) * this.columns,
    );
    for (const [index, element] of this.shown) {
      if ((index < first || index >= last) && !element.contains(document.activeElement)) {
        element.remove();
        this.shown.delete(index);
      }
    }
    for (let index = first; index < last; index += 1) {
      const there = this.shown.get(index);
      if (there) this.place(there, index);
      else {
        const element = this.make(index);
        this.shown.set(index, element);
        this.insert(element, index);
      }
    }
    if (last >= this.items.length && !this.complete) this.settings.more?.();
  }

  /**
   * Keep the order of the document that of the list, for the tab key and for screen readers.
   *
   * @param {HTMLElement} element
   * @param {number} index
   */
  insert(element, index) {
    for (const sibling of this.element.children) {
      if (Number(/** @type {HTMLElement} */ (sibling).dataset.index) > index) {
        sibling.before(element);
        return;
      }
    }
    this.element.append(element);
  }

  /** @param {number} index */
  make(index) {
    const element = this.settings.render(this.items[index], index);
    element.dataset.index = String(index);
    element.setAttribute('role', 'article');
    element.setAttribute('tabindex', '0');
    element.setAttribute('aria-posinset', String(index + 1));
    element.setAttribute('aria-setsize', this.complete ? String(this.items.length) : '-1');
    this.place(element, index);
    // A picture is asked for once its place has stayed in view: who scrolls past thousands asks for few.
    setTimeout(() => {
      if (!element.isConnected) return;
      for (const image of element.querySelectorAll('img[data-src]')) {
        image.setAttribute('src', /** @type {HTMLImageElement} */ (image).dataset.src ?? '');
        image.removeAttribute('data-src');
      }
    }, PICTURES_AFTER);
    return element;
  }

  /**
   * @param {HTMLElement} element
   * @param {number} index
   */
  place(element, index) {
    const row = Math.floor(index / this.columns);
    const column = index % this.columns;
    element.style.setProperty('top', `${row * this.height}px`);
    element.style.setProperty('left', `${(column * 100) / this.columns}%`);
    element.style.setProperty('width', `${100 / this.columns}%`);
    element.style.setProperty('height', `${this.height}px`);
  }

  /**
   * Show an item and give it the focus.
   *
   * @param {number} index
   */
  focus(index) {
    const target = Math.min(Math.max(0, index), this.items.length - 1);
    if (target < 0) return;
    const top = this.element.getBoundingClientRect().top + window.scrollY;
    const y = top + Math.floor(target / this.columns) * this.height;
    const head = 130;
    if (y - head < window.scrollY) window.scrollTo({ top: y - head });
    else if (y + this.height > window.scrollY + window.innerHeight) {
      window.scrollTo({ top: y + this.height - window.innerHeight + 12 });
    }
    this.draw();
    this.shown.get(target)?.focus({ preventScroll: true });
  }

  /** @param {KeyboardEvent} event */
  onKey(event) {
    const article = /** @type {HTMLElement} */ (event.target);
    if (article.getAttribute('role') !== 'article' || event.ctrlKey || event.metaKey || event.altKey) return;
    const index = Number(article.dataset.index);
    const steps = /** @type {Record<string, number>} */ ({
      ArrowRight: 1,
      ArrowLeft: -1,
      ArrowDown: this.columns,
      ArrowUp: -this.columns,
      PageDown: this.columns * 3,
      PageUp: -this.columns * 3,
      j: 1,
      k: -1,
    });
    if (event.key in steps) this.focus(index + steps[event.key]);
    else if (event.key === 'Home') this.focus(0);
    else if (event.key === 'End') this.focus(this.items.length - 1);
    else if (this.settings.keys && event.key.length <= 5) {
      this.settings.keys(this.items[index], index, event.key);
      return;
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

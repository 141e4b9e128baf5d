/**
 * The footage of a stream by day, each day a bar of 24 hours on which gaps are visible; a canvas.
 *
 * The bars are days of the chosen zone. Enter or a click opens the moment below the cursor.
 */

import * as clock from './clock.js';
import { h } from './dom.js';
import { spoken } from './moments.js';
import { strings } from './strings.js';
import { colour } from './theme.js';

const ROW = 20;
const BAR = 13;
const AXIS = 16;
const STEP = 60000;

/**
 * @param {import('./types.js').Interval[]} intervals
 * @returns {[number, number][]} covered stretches, milliseconds, ascending and apart
 */
export function covered(intervals) {
  /** @type {[number, number][]} */
  const result = [];
  for (const [from, to] of intervals) {
    const start = clock.millis(from);
    const end = Math.max(clock.millis(to), start + 1000);
    const before = result[result.length - 1];
    if (before && start - before[1] <= 1000) before[1] = Math.max(before[1], end);
    else result.push([start, end]);
  }
  return result;
}

/**
 * The gaps between covered stretches.
 *
 * @param {[number, number][]} stretches
 * @returns {[number, number][]}
 */
export function gaps(stretches) {
  return stretches.slice(1).map((stretch, i) => [stretches[i][1], stretch[0]]);
}

export class Coverage {
  /**
   * @param {{stream: string, stretches: [number, number][], days: number, pick: (at: number) => void}} settings
   *   `days`: most days shown, the latest ones
   */
  constructor(settings) {
    this.settings = settings;
    this.stretches = settings.stretches;
    this.days = this.list();
    this.row = this.days.length - 1;
    /** @type {number|null} */
    this.cursor = null;
    this.canvas = h('canvas', {
      class: 'coverage-canvas',
      tabindex: '0',
      role: 'slider',
      'aria-label': strings.streams.coverage(settings.stream),
      'aria-valuemin': '0',
      'aria-valuemax': '1440',
      'aria-valuenow': '0',
    });
    this.tip = h('div', { class: 'tip', 'aria-hidden': 'true', hidden: true });
    this.element = h('div', { class: 'coverage' }, this.canvas, this.tip);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
    this.redraw = () => {
      this.days = this.list();
      this.draw();
    };
    document.addEventListener('theme', this.redraw);
    document.addEventListener('zone', this.redraw);
    this.canvas.addEventListener('pointermove', (event) => this.point(event));
    this.canvas.addEventListener('pointerleave', () => this.leave());
    this.canvas.addEventListener('blur', () => this.leave());
    this.canvas.addEventListener('click', (event) => {
      this.point(event);
      this.choose();
    });
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    this.canvas.addEventListener('focus', () => {
      this.cursor ??= this.stretches[this.stretches.length - 1]?.[1] - 1000 || null;
      this.tell();
    });
    this.value();
  }

  /** Stop listening. */
  destroy() {
    this.observer.disconnect();
    document.removeEventListener('theme', this.redraw);
    document.removeEventListener('zone', this.redraw);
  }

  /** @returns {{name: string, start: number, end: number}[]} */
  list() {
    const names = new Set();
    for (const [start, end] of this.stretches) {
      for (let at = start; at < end; at += 43200000) names.add(clock.day(at));
      names.add(clock.day(end - 1));
    }
    return [...names]
      .sort()
      .slice(-this.settings.days)
      .map((name) => {
        const [start, end] = clock.dayRange(name);
        return { name, start, end };
      });
  }

  /** Pixels of the labels before the bars. */
  get left() {
    return this.canvas.clientWidth < 420 ? 46 : 84;
  }

  draw() {
    const width = this.canvas.clientWidth;
    const height = this.days.length * ROW + AXIS;
    this.canvas.style.setProperty('height', `${height}px`);
    const pen = this.canvas.getContext('2d');
    if (!width || !pen) return;
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    pen.scale(scale, scale);
    pen.font = `11px ${colour('--font') || 'sans-serif'}`;
    const left = this.left;
    const room = width - left;
    this.days.forEach((day, i) => {
      const y = i * ROW + (ROW - BAR) / 2;
      pen.fillStyle = colour('--soft');
      pen.fillText(left < 80 ? day.name.slice(5) : day.name, 0, y + 10.5);
      pen.fillStyle = colour('--strip');
      pen.beginPath();
      pen.roundRect(left, y, room, BAR, 2.5);
      pen.fill();
      pen.fillStyle = colour('--cover');
      for (const [start, end] of this.stretches) {
        if (end <= day.start || start >= day.end) continue;
        const from = left + ((Math.max(start, day.start) - day.start) / (day.end - day.start)) * room;
        const to = left + ((Math.min(end, day.end) - day.start) / (day.end - day.start)) * room;
        pen.fillRect(from, y, Math.max(1.5, to - from), BAR);
      }
    });
    pen.fillStyle = colour('--soft');
    const hours = room < 300 ? 6 : 3;
    for (let hour = 0; hour <= 24; hour += hours) {
      pen.textAlign = hour === 0 ? 'left' : hour === 24 ? 'right' : 'center';
      pen.fillText(String(hour).padStart(2, '0'), left + (room * hour) / 24, height - 3);
    }
    pen.textAlign = 'left';
    const day = this.days[this.row];
    if (this.cursor !== null && day) {
      const x = left + ((this.cursor - day.start) / (day.end - day.start)) * room;
      pen.fillStyle = colour('--ink');
      pen.fillRect(x - 0.75, this.row * ROW + 1, 1.5, ROW - 2);
    }
  }

  /** @param {PointerEvent|MouseEvent} event */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    this.row = Math.min(this.days.length - 1, Math.max(0, Math.floor((event.clientY - box.top) / ROW)));
    const day = this.days[this.row];
    if (!day) return;
    const share = (event.clientX - box.left - this.left) / (box.width - this.left);
    const at = day.start + Math.min(Math.max(share, 0), 0.9999) * (day.end - day.start);
    this.cursor = this.snap(at, ((day.end - day.start) / (box.width - this.left)) * 4);
    this.tell();
  }

  /**
   * The nearest covered time within a distance, so that a short stretch can be hit.
   *
   * @param {number} at
   * @param {number} distance
   */
  snap(at, distance) {
    let best = at;
    let far = distance;
    for (const [start, end] of this.stretches) {
      if (at >= start && at < end) return at;
      for (const edge of [start, end - 1000]) {
        if (Math.abs(edge - at) < far) {
          far = Math.abs(edge - at);
          best = edge;
        }
      }
    }
    return best;
  }

  leave() {
    this.tip.hidden = true;
    if (document.activeElement !== this.canvas) this.cursor = null;
    this.draw();
  }

  choose() {
    if (this.cursor !== null && this.stretches.length) this.settings.pick(this.snap(this.cursor, Infinity));
  }

  tell() {
    this.draw();
    const text = this.value();
    this.tip.textContent = text;
    this.tip.hidden = this.cursor === null;
    const day = this.days[this.row];
    if (this.cursor === null || !day) return;
    const width = this.canvas.clientWidth;
    const x = this.left + ((this.cursor - day.start) / (day.end - day.start)) * (width - this.left);
    const half = this.tip.offsetWidth / 2;
    this.tip.style.setProperty('left', `${Math.min(Math.max(half, x), Math.max(half, width - half))}px`);
    this.tip.style.setProperty('top', `${this.row * ROW - 24}px`);
  }

  /** @returns {string} */
  value() {
    const day = this.days[this.row];
    if (this.cursor === null || !day) {
      this.canvas.setAttribute(
        'aria-valuetext',
        strings.streams.summary(this.days.length, gaps(this.stretches).length),
      );
      return '';
    }
    const at = this.cursor;
    const inside = this.stretches.some(([start, end]) => at >= start && at < end);
    const text = strings.streams.place(spoken(clock.rfc3339(Math.floor(at / 1000) * 1000)), inside);
    this.canvas.setAttribute('aria-valuenow', String(Math.round((at - day.start) / STEP)));
    this.canvas.setAttribute('aria-valuetext', text);
    return text;
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const day = this.days[this.row];
    if (!day || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.cursor ?? day.start;
    const step = event.shiftKey ? 60 * STEP : 5 * STEP;
    if (event.key === 'ArrowRight') this.cursor = Math.min(day.end - 1000, at + step);
    else if (event.key === 'ArrowLeft') this.cursor = Math.max(day.start, at - step);
    else if (event.key === 'ArrowUp' || event.key === 'ArrowDown') {
      const row = Math.min(this.days.length - 1, Math.max(0, this.row + (event.key === 'ArrowDown' ? 1 : -1)));
      this.cursor = this.days[row].start + (at - day.start);
      this.row = row;
    } else if (event.key === 'Home') this.cursor = this.snap(day.start, Infinity);
    else if (event.key === 'End') this.cursor = this.snap(day.end - 1000, Infinity);
    else if (event.key === 'Enter' || event.key === ' ') this.choose();
    else return;
    if (this.cursor !== null) {
      const row = this.days.findIndex(
        (each) => this.cursor !== null && this.cursor >= each.start && this.cursor < each.end,
      );
      if (row >= 0) this.row = row;
    }
    event.preventDefault();
    event.stopPropagation();
    this.tell();
  }
}

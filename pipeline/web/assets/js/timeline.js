/**
 * Relevance of every frame over time, one lane for each stream, with keyframes and evidence, drawn on a canvas.
 *
 * A cursor moves with the pointer and with the keyboard: arrow keys from frame to frame, with Shift from keyframe to
 * keyframe, up and down between streams, `+` and `-` zoom, Enter picks the time. It is a slider to assistive technology,
 * whose value is the sentence that a person reads beside the pointer.
 */

import * as clock from './clock.js';
import { h } from './dom.js';
import { spoken } from './moments.js';
import { strings } from './strings.js';
import { colour, heat } from './theme.js';

const LANE = 46;
const STRIP_TOP = 14;
const STRIP = 24;
const AXIS = 20;
const NEAR = 6;

/**
 * @typedef {object} Lane
 * @property {string} stream
 * @property {number[]} times milliseconds, ascending
 * @property {number[]} scores
 * @property {number[]} marks times of keyframes, ascending
 * @property {[number, number][]} [spans] evidence
 *
 * @typedef {{lane: Lane, at: number, score: number, keyframe: boolean}} Place
 */

export class Timeline {
  /**
   * @param {{lanes: Lane[], label: string, pick: (place: Place) => void}} settings
   */
  constructor(settings) {
    this.lanes = settings.lanes.filter((lane) => lane.times.length);
    this.pick = settings.pick;
    this.canvas = h('canvas', {
      class: 'timeline-canvas',
      tabindex: '0',
      role: 'slider',
      'aria-label': settings.label,
      'aria-keyshortcuts': 'ArrowLeft ArrowRight Shift+ArrowLeft Shift+ArrowRight Enter Plus Minus',
      'aria-orientation': 'horizontal',
    });
    this.tip = h('div', { class: 'tip', 'aria-hidden': 'true', hidden: true });
    this.element = h('div', { class: 'timeline' }, this.canvas, this.tip);
    const all = this.lanes.flatMap((lane) => [lane.times[0], lane.times[lane.times.length - 1] + 1000]);
    this.least = Math.min(...all);
    this.most = Math.max(...all, this.least + 1000);
    this.start = this.least;
    this.end = this.most;
    this.low = Infinity;
    this.high = -Infinity;
    for (const lane of this.lanes) {
      for (const score of lane.scores) {
        if (score < this.low) this.low = score;
        if (score > this.high) this.high = score;
      }
    }
    this.row = 0;
    /** @type {number|null} */
    this.cursor = null;
    this.canvas.style.setProperty('height', `${this.lanes.length * LANE + AXIS}px`);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
    this.redraw = () => this.draw();
    document.addEventListener('theme', this.redraw);
    document.addEventListener('zone', this.redraw);
    this.canvas.addEventListener('pointermove', (event) => this.point(event));
    this.canvas.addEventListener('pointerleave', () => this.leave());
    this.canvas.addEventListener('click', (event) => {
      this.point(event);
      this.choose();
    });
    this.canvas.addEventListener('keydown', (event) => this.key(event));
    this.canvas.addEventListener('focus', () => {
      if (this.cursor === null) {
        // The most relevant stream may not be the first: begin where there is a keyframe.
        this.row = Math.max(
          0,
          this.lanes.findIndex((lane) => lane.marks.length),
        );
        this.cursor = this.lanes[this.row]?.marks[0] ?? this.least;
      }
      this.tell();
    });
    this.canvas.addEventListener('blur', () => this.leave());
    this.canvas.addEventListener('wheel', (event) => this.wheel(event), { passive: false });
    this.value();
  }

  /** Stop listening. */
  destroy() {
    this.observer.disconnect();
    document.removeEventListener('theme', this.redraw);
    document.removeEventListener('zone', this.redraw);
  }

  /** @param {number} at */
  x(at) {
    return ((at - this.start) / (this.end - this.start)) * this.canvas.clientWidth;
  }

  draw() {
    const width = this.canvas.clientWidth;
    const height = this.lanes.length * LANE + AXIS;
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext('2d');
    if (!pen) return;
    pen.scale(scale, scale);
    pen.font = `11px ${colour('--font') || 'sans-serif'}`;
    this.lanes.forEach((lane, i) => this.lane(pen, lane, i * LANE, width));
    this.axis(pen, width, this.lanes.length * LANE + 14);
    if (this.cursor !== null) {
      const x = this.x(this.cursor);
      pen.fillStyle = colour('--ink');
      pen.fillRect(Math.round(x) - 0.5, this.row * LANE + STRIP_TOP - 5, 1.5, STRIP + 10);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Lane} lane
   * @param {number} top
   * @param {number} width
   */
  lane(pen, lane, top, width) {
    pen.fillStyle = colour('--strip');
    pen.beginPath();
    pen.roundRect(0, top + STRIP_TOP, width, STRIP, 3);
    pen.fill();
    const span = Math.max(this.high - this.low, 1e-9);
    const columns = Math.ceil(width);
    const best = new Float64Array(columns).fill(-Infinity);
    const step = lane.times.length > 1 ? typical(lane.times) : 1000;
    const wide = (step / (this.end - this.start)) * width;
    for (
      let i = lowerBound(lane.times, this.start - step);
      i < lane.times.length && lane.times[i] <= this.end;
      i += 1
    ) {
      const from = Math.max(0, Math.floor(this.x(lane.times[i])));
      const to = Math.min(columns - 1, Math.max(from, Math.floor(this.x(lane.times[i]) + wide - 0.01)));
      for (let column = from; column <= to; column += 1) best[column] = Math.max(best[column], lane.scores[i]);
    }
    for (let column = 0; column < columns; column += 1) {
      if (best[column] === -Infinity) continue;
      pen.fillStyle = heat((best[column] - this.low) / span);
      pen.fillRect(column, top + STRIP_TOP, 1.2, STRIP);
    }
    for (const [from, to] of lane.spans ?? []) {
      if (to < this.start || from > this.end) continue;
      const x = this.x(Math.max(from, this.start));
      const right = Math.max(x + 4, this.x(Math.min(to, this.end)));
      pen.globalAlpha = 0.2;
      pen.fillStyle = colour('--good');
      pen.fillRect(x, top + STRIP_TOP - 4, right - x, STRIP + 8);
      pen.globalAlpha = 1;
      pen.strokeStyle = colour('--good');
      pen.lineWidth = 1.5;
      pen.strokeRect(x, top + STRIP_TOP - 4, right - x, STRIP + 8);
    }
    pen.fillStyle = colour('--key');
    for (const at of lane.marks) {
      if (at < this.start || at > this.end) continue;
      const x = this.x(at);
      pen.fillRect(x - 0.6, top + STRIP_TOP, 1.2, STRIP);
      pen.beginPath();
      pen.moveTo(x - 4, top + 4);
      pen.lineTo(x + 4, top + 4);
      pen.lineTo(x, top + 12);
      pen.fill();
    }
    if (this.lanes.length > 1) {
      pen.lineJoin = 'round';
      pen.lineWidth = 3;
      pen.strokeStyle = colour('--card');
      pen.strokeText(lane.stream, 6, top + STRIP_TOP + 16);
      pen.fillStyle = colour('--ink');
      pen.fillText(lane.stream, 6, top + STRIP_TOP + 16);
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {number} width
   * @param {number} y
   */
  axis(pen, width, y) {
    const ticks = Math.max(2, Math.min(8, Math.floor(width / 110)));
    const days = this.end - this.start > 20 * 3600 * 1000;
    pen.fillStyle = colour('--soft');
    for (let i = 0; i <= ticks; i += 1) {
      const at = this.start + ((this.end - this.start) * i) / ticks;
      pen.textAlign = i === 0 ? 'left' : i === ticks ? 'right' : 'center';
      pen.fillText(days ? clock.stamp(at).slice(5, 16) : clock.time(at), (width * i) / ticks, y);
    }
    pen.textAlign = 'left';
  }

  /** @param {PointerEvent|MouseEvent} event */
  point(event) {
    const box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left;
    this.row = Math.min(this.lanes.length - 1, Math.max(0, Math.floor((event.clientY - box.top) / LANE)));
    const lane = this.lanes[this.row];
    if (!lane) return;
    const near = lane.marks.find((at) => Math.abs(this.x(at) - x) < NEAR);
    const at = this.start + (x / box.width) * (this.end - this.start);
    this.cursor = near ?? nearest(lane.times, at);
    this.tell();
  }

  leave() {
    this.tip.hidden = true;
    if (document.activeElement !== this.canvas) this.cursor = null;
    this.draw();
  }

  /** @returns {Place|null} */
  place() {
    const lane = this.lanes[this.row];
    if (!lane || this.cursor === null) return null;
    const index = lowerBound(lane.times, nearest(lane.times, this.cursor));
    return { lane, at: this.cursor, score: lane.scores[index] ?? NaN, keyframe: lane.marks.includes(this.cursor) };
  }

  choose() {
    const place = this.place();
    if (place) this.pick(place);
  }

  /** Show and speak the place of the cursor. */
  tell() {
    this.draw();
    const text = this.value();
    this.tip.textContent = text;
    this.tip.hidden = !text || this.cursor === null;
    const x = this.cursor === null ? 0 : this.x(this.cursor);
    const half = this.tip.offsetWidth / 2;
    this.tip.style.setProperty(
      'left',
      `${Math.min(Math.max(half, x), Math.max(half, this.canvas.clientWidth - half))}px`,
    );
    this.tip.style.setProperty('top', `${this.row * LANE - 18}px`);
  }

  /** @returns {string} */
  value() {
    const at = this.cursor ?? this.start;
    this.canvas.setAttribute('aria-valuemin', '0');
    this.canvas.setAttribute('aria-valuemax', String(Math.round((this.most - this.least) / 1000)));
    this.canvas.setAttribute('aria-valuenow', String(Math.round((at - this.least) / 1000)));
    const place = this.place();
    const text = place
      ? strings.timeline.place(place.lane.stream, spoken(clock.rfc3339(place.at)), place.score, place.keyframe)
      : '';
    this.canvas.setAttribute('aria-valuetext', text || spoken(clock.rfc3339(at)));
    return text;
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    const lane = this.lanes[this.row];
    if (!lane || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = this.cursor ?? lane.times[0];
    const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
    if (step) {
      const times = event.shiftKey ? lane.marks : lane.times;
      const visible = Math.max(1, Math.round(lane.times.length / 4000));
      this.cursor = beside(times, at, event.shiftKey ? step : step * visible);
    } else if (event.key === 'PageUp' || event.key === 'PageDown') {
      const jump = (this.end - this.start) / 20;
      this.cursor = nearest(lane.times, at + (event.key === 'PageUp' ? jump : -jump));
    } else if (event.key === 'Home') this.cursor = lane.times[0];
    else if (event.key === 'End') this.cursor = lane.times[lane.times.length - 1];
    else if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      this.row = Math.min(this.lanes.length - 1, Math.max(0, this.row + (event.key === 'ArrowDown' ? 1 : -1)));
      this.cursor = nearest(this.lanes[this.row].times, at);
    } else if (event.key === '+' || event.key === '=') this.zoom(0.5, at);
    else if (event.key === '-') this.zoom(2, at);
    else if (event.key === '0') this.zoom(Infinity, at);
    else if (event.key === 'Enter' || event.key === ' ') this.choose();
    else return;
    event.preventDefault();
    event.stopPropagation();
    this.reveal();
    this.tell();
  }

  /** Move the visible part so that it contains the cursor. */
  reveal() {
    if (this.cursor === null) return;
    const span = this.end - this.start;
    if (this.cursor < this.start) this.start = Math.max(this.least, this.cursor - span / 4);
    else if (this.cursor > this.end) this.start = Math.min(this.most - span, this.cursor - (span * 3) / 4);
    this.end = this.start + span;
  }

  /**
   * Show more or less time around a time, which stays where it is.
   *
   * @param {number} factor below 1: less time
   * @param {number} at
   */
  zoom(factor, at) {
    const span = Math.min(this.most - this.least, Math.max(10000, (this.end - this.start) * factor));
    const share = (at - this.start) / (this.end - this.start);
    this.start = Math.min(Math.max(this.least, at - share * span), this.most - span);
    this.end = this.start + span;
    this.draw();
  }

  /** @param {WheelEvent} event */
  wheel(event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const box = this.canvas.getBoundingClientRect();
    const at = this.start + ((event.clientX - box.left) / box.width) * (this.end - this.start);
    this.zoom(event.deltaY < 0 ? 0.8 : 1.25, at);
  }
}

/**
 * The index of the first time that is not before `at`.
 *
 * @param {number[]} times
 * @param {number} at
 */
export function lowerBound(times, at) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] < at) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The time that is nearest to `at`; `at` itself if there is none.
 *
 * @param {number[]} times
 * @param {number} at
 */
export function nearest(times, at) {
  const index = lowerBound(times, at);
  const after = times[index];
  const before = times[index - 1];
  if (after === undefined) return before ?? at;
  if (before === undefined) return after;
  return after - at < at - before ? after : before;
}

/**
 * The time some places before or after `at`.
 *
 * @param {number[]} times
 * @param {number} at
 * @param {number} steps
 */
function beside(times, at, steps) {
  if (!times.length) return at;
  const index = lowerBound(times, at);
  const exact = times[index] === at;
  const target = steps > 0 ? index + steps - (exact ? 0 : 1) : index + steps;
  return times[Math.min(Math.max(0, target), times.length - 1)];
}

/**
 * The usual distance between times, so that a gap in the footage stays visible as one.
 *
 * @param {number[]} times
 */
function typical(times) {
  const steps = [];
  const stride = Math.max(1, Math.floor(times.length / 200));
  for (let i = stride; i < times.length; i += stride) steps.push(times[i] - times[i - 1]);
  steps.sort((a, b) => a - b);
  return Math.max(1000, steps[steps.length >> 1] ?? 1000);
}

// Numbers and times as people read them, and text put into the page: never as HTML.

const LOCALE = "en";
const SVG = "http://www.w3.org/2000/svg";

export function count(number) {
  if (number < 1e6) return number.toLocaleString(LOCALE);
  return number.toLocaleString(LOCALE, { notation: "compact", maximumFractionDigits: 2 });
}

export function share(fraction, digits = 1) {
  if (fraction === null || fraction === undefined) return "–";
  return `${(100 * fraction).toLocaleString(LOCALE, { maximumFractionDigits: digits })} %`;
}

export function bytes(number) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (number >= 1000 && unit < units.length - 1) {
    number /= 1000;
    unit += 1;
  }
  const digits = number < 10 && unit > 0 ? 1 : 0;
  return `${number.toLocaleString(LOCALE, { maximumFractionDigits: digits })} ${units[unit]}`;
}

// A time that something took: 0.21 ms, 45 ms, 1.3 s.
export function took(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${significant(1000 * seconds)} ms`;
  return `${significant(seconds)} s`;
}

// A long time: 12 s, 3 min 20 s, 5 h 12 min, 21 d 3 h.
export function lasted(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const steps = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = steps.findIndex(([size]) => whole >= size);
  if (at < 0) return "0 s";
  const [size, unit] = steps[at];
  const first = `${Math.floor(whole / size)} ${unit}`;
  if (at === steps.length - 1) return first;
  const [smaller, itsUnit] = steps[at + 1];
  const rest = Math.floor((whole % size) / smaller);
  return rest ? `${first} ${rest} ${itsUnit}` : first;
}

export function significant(number) {
  return number.toLocaleString(LOCALE, { maximumSignificantDigits: number < 1000 ? 2 : 4 });
}

export function clock(date, seconds = false) {
  const two = "2-digit";
  const parts = { hour: two, minute: two, hourCycle: "h23", ...(seconds && { second: two }) };
  return date.toLocaleTimeString(LOCALE, parts);
}

// A value as the task gives it; text as it is, all else as JSON.
export function value(thing) {
  if (thing === null) return "nothing";
  const text = typeof thing === "string" ? thing : JSON.stringify(thing);
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}

export function make(name, text = "", attributes = {}) {
  const element = document.createElement(name);
  element.textContent = text;
  for (const [key, given] of Object.entries(attributes)) element.setAttribute(key, given);
  return element;
}

export function draw(name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, given] of Object.entries(attributes)) element.setAttribute(key, given);
  if (text) element.textContent = text;
  return element;
}

// The elements of a part of the page by their data-is, written to only where they change.
export class Parts {
  constructor(root) {
    this.parts = new Map();
    for (const element of root.querySelectorAll("[data-is]")) {
      this.parts.set(element.dataset.is, element);
    }
  }

  get(name) {
    return this.parts.get(name);
  }

  text(name, text) {
    const element = this.parts.get(name);
    if (element.textContent !== text) element.textContent = text;
  }

  show(name, shown) {
    this.parts.get(name).hidden = !shown;
  }

  // A sentence that is there only while there is something to say.
  note(name, sentence, tone = "") {
    this.text(name, sentence);
    this.show(name, sentence !== "");
    if (tone) this.tone(name, tone);
  }

  tone(name, tone) {
    this.parts.get(name).dataset.tone = tone;
  }
}

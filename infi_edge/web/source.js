// One source's card: what it sees and decides, what that saves, what it promises.

import { Parts, bytes, clock, count, lasted, make, share, significant, took, value } from "/format.js";
import { showLearned } from "/learned.js";
import { binned, drawPlots } from "/plot.js";

const ACTIONS = { skip: "Skipped", reuse: "Reused", infer: "Inferred" };
export const TONES = { live: "good", failing: "bad", starting: "idle", ended: "idle" };

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: AbortSignal.timeout(5000),
  });
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

export class SourceCard {
  constructor(name, changed) {
    const template = document.getElementById("source").content;
    this.element = template.firstElementChild.cloneNode(true);
    this.parts = new Parts(this.element);
    this.path = `/api/source/${encodeURIComponent(name)}`;
    this.name = name;
    this.changed = changed;
    this.status = null;
    this.minutes = [];
    this.span = 60;
    this.measure = null; // what the slider is about and where it is, once someone touched it
    this.place = null;
    this.seen = -1;
    this.picture = "";
    this.parts.text("name", name);
    const title = this.parts.get("name");
    title.id = `source-${name}`;
    this.element.setAttribute("aria-labelledby", title.id);
    this.listen();
  }

  listen() {
    const { parts } = this;
    parts.get("enabled").addEventListener("click", () => this.toggle());
    parts.get("slider").addEventListener("input", (event) => {
      this.measure = this.row.measure;
      this.place = Number(event.target.value);
      this.showTarget();
    });
    parts.get("undo").addEventListener("click", () => this.untouch());
    parts.get("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    for (const radio of parts.get("measures").querySelectorAll("input")) {
      radio.name = `measure-${this.name}`;
      radio.addEventListener("change", () => {
        this.measure = radio.value;
        this.place = null;
        this.showTarget();
      });
    }
    for (const radio of parts.get("history").querySelectorAll(".spans input")) {
      radio.name = `span-${this.name}`;
      radio.addEventListener("change", () => {
        this.span = Number(radio.value);
        this.showHistory();
      });
    }
    let width = 0;
    new ResizeObserver(() => {
      const now = parts.get("plots").clientWidth;
      if (now !== width) this.showHistory();
      width = now;
    }).observe(this.element);
    parts.get("as-table").addEventListener("toggle", () => this.showHistory());
  }

  // status: a source of /api/status. at: the daemon's time then. pictures: whether it shows them.
  show(status, at, pictures) {
    this.status = status;
    const { parts } = this;
    parts.text("state", status.state);
    parts.tone("state", TONES[status.state] ?? "idle");
    parts.text("address", status.address);
    const madeOf = [status.modality, status.task, status.model, status.bundle];
    parts.text("made-of", madeOf.filter(Boolean).join(" · "));
    parts.note("sentence", status.sentence, status.state === "failing" ? "bad" : "warn");
    parts.note("quiet", quietNote(status));
    parts.note("degraded", degradedNote(status));
    parts.note("link", linkNote(status), "bad");
    parts.show("scene", status.scene_change);
    this.showSwitch();
    this.showDecision(at);
    this.showRates();
    this.showTimes();
    this.showTarget();
    showLearned(parts, status.learning);
    if (pictures) this.showPicture();
  }

  showSwitch() {
    const { enabled } = this.status;
    const button = this.parts.get("enabled");
    button.setAttribute("aria-checked", String(enabled));
    button.setAttribute("aria-label", `Filter the inputs of ${this.name}`);
    this.parts.text("enabled-text", enabled ? "Filter on" : "Filter off: all is inferred");
  }

  showDecision(at) {
    const { parts, status } = this;
    const action = ACTIONS[status.last_action];
    parts.text("action", action ?? "No input yet");
    parts.get("action").dataset.action = status.last_action;
    parts.text("value", action ? value(status.last_value) : "");
    parts.text("why", action ? status.last_why : "");
    const ago = status.last_at ? (at - new Date(status.last_at)) / 1000 : null;
    const when = ago === null ? "" : ago < 1 ? "just now" : `${lasted(ago)} ago`;
    const p = status.last_p_changed;
    const scores = [
      status.last_score === null ? "" : `score ${significant(status.last_score)}`,
      p === null ? "" : `p(changed) ${significant(p)}`,
    ];
    parts.text("ago", [when, ...scores].filter(Boolean).join(" · "));
    parts.show("event", status.event_active);
  }

  async showPicture() {
    const { parts, status } = this;
    if (status.inputs === this.seen || this.loading) return;
    this.loading = true;
    try {
      const response = await fetch(`${this.path}/picture`, { signal: AbortSignal.timeout(5000) });
      if (response.status !== 200) return;
      const url = URL.createObjectURL(await response.blob());
      const image = parts.get("picture");
      image.src = url;
      image.alt = `What ${this.name} sees`;
      parts.show("picture", true);
      if (this.picture) URL.revokeObjectURL(this.picture);
      this.picture = url;
      this.seen = status.inputs;
    } catch {
      // The next status says it if the daemon is away.
    } finally {
      this.loading = false;
    }
  }

  showRates() {
    const { parts, status } = this;
    parts.text("filtering", share(status.filtering_rate));
    for (const action of Object.keys(ACTIONS)) {
      const number = status.counts[action] ?? 0;
      parts.text(action, count(number));
      parts.get(`bar-${action}`).style.flexGrow = number;
    }
    parts.text("saved", count((status.counts.skip ?? 0) + (status.counts.reuse ?? 0)));
    parts.text("saved-time", lasted(status.model_saved_s));
    const saved = status.bandwidth_saved;
    const ofAll = saved === null ? "" : ` (${share(saved)} of what a server would get)`;
    parts.text("saved-bytes", bytes(status.bytes_saved) + ofAll);
  }

  showTimes() {
    const { parts, status } = this;
    const rows = { filter: "filter_s", model: "model_s", queue: "queue_s", age: "frame_age_s" };
    for (const [name, key] of Object.entries(rows)) {
      const times = status[key];
      parts.text(`${name}-mean`, took(times.mean_s));
      const over = times.count > 0 && times.p99_s === null;
      parts.text(`${name}-p99`, over ? "over 60 s" : took(times.p99_s));
    }
    parts.text("cache-entries", count(status.cache_entries));
    parts.text("cache-bytes", bytes(status.cache_bytes));
    parts.text("cache-hits", count(status.cache_hits));
    parts.text("cache-evictions", count(status.cache_evictions));
    this.showFaults();
  }

  showFaults() {
    const { skip, reuse, infer, ...incidents } = this.status.counts;
    const causes = Object.entries(this.status.errors).map(([cause, n]) => [`error: ${cause}`, n]);
    causes.push(...Object.entries(this.status.faults), ...Object.entries(incidents));
    const some = causes.filter(([, number]) => number > 0);
    const told = JSON.stringify(some);
    if (told === this.faultsTold) return;
    this.faultsTold = told;
    this.parts.show("no-faults", some.length === 0);
    const rows = some.map(([cause, number]) => {
      const row = make("div");
      row.append(make("dt", cause.replaceAll("_", " ")), make("dd", count(number)));
      return row;
    });
    this.parts.get("faults").replaceChildren(...rows);
  }

  showTarget() {
    const { parts, status } = this;
    const { points } = status;
    const now = points[status.chosen];
    parts.text("promise", status.promise);
    parts.show("form", points.length > 0);
    parts.show("no-points", points.length === 0 && !status.learning);
    parts.show("target-fixed", Boolean(status.learning));
    if (points.length === 0) return;
    const measure = this.measure ?? (now ?? points[0]).measure;
    const rows = points.filter((point) => point.measure === measure);
    rows.sort((a, b) => a.target - b.target);
    const nearest = rows.findIndex((row) => row.target >= (now?.target ?? 0));
    const at = Math.min(this.place ?? (nearest < 0 ? rows.length : nearest), rows.length - 1);
    const then = rows[at];
    this.row = then;
    const same = now && then.measure === now.measure && then.target === now.target;
    parts.show("measures", new Set(points.map((point) => point.measure)).size > 1);
    for (const radio of parts.get("measures").querySelectorAll("input")) {
      radio.checked = radio.value === measure;
    }
    const slider = parts.get("slider");
    slider.max = rows.length - 1;
    slider.value = at;
    slider.disabled = rows.length < 2;
    const target = `${then.measure} ${share(then.target)}`;
    slider.setAttribute("aria-valuetext", target);
    parts.text("target", target);
    for (const [name, point] of [["now", now], ["then", then]]) {
      parts.text(`${name}-rate`, share(point?.filtering_rate));
      parts.text(`${name}-accuracy`, share(point?.accuracy));
      parts.text(`${name}-recall`, share(point?.recall));
      const of = now && now.measure !== then.measure && point ? ` ${point.measure}` : "";
      parts.text(`${name}-bound`, share(point?.bound) + of);
    }
    this.showStops(rows);
    const bound = boundNote(then, status.confidence);
    parts.text("effect", same ? bound : `${effectOf(now, then)} ${bound}`);
    parts.get("apply").disabled = same || this.applying === true;
    parts.show("undo", !same && now !== undefined);
  }

  showStops(rows) {
    const stops = rows.map((row) => share(row.target));
    if (stops.join() === this.stops) return;
    this.stops = stops.join();
    this.parts.get("stops").replaceChildren(...stops.map((stop) => make("span", stop)));
  }

  untouch() {
    this.measure = this.place = null;
    this.showTarget();
  }

  async apply() {
    const { row } = this;
    this.applying = true;
    this.showTarget();
    try {
      const body = { measure: row.measure, target: row.target };
      const point = await post(`${this.path}/target`, body);
      this.tell(`The target is ${point.measure} ${share(point.target)} now.`, "good");
      await this.changed();
      this.measure = this.place = null;
    } catch (error) {
      this.tell(`The target was not changed: ${error.message}`, "bad");
    } finally {
      this.applying = false;
      this.showTarget();
    }
  }

  async toggle() {
    const enabled = !this.status.enabled;
    try {
      await post(`${this.path}/enabled`, { enabled });
      this.tell(enabled ? "Filtering again." : "Everything goes to the model now.", "good");
      await this.changed();
    } catch (error) {
      this.tell(`Nothing was switched: ${error.message}`, "bad");
    }
  }

  tell(sentence, tone) {
    this.parts.note("told", sentence, tone);
    clearTimeout(this.untell);
    this.untell = setTimeout(() => this.parts.note("told", ""), tone === "good" ? 6000 : 30000);
  }

  // minutes: of /api/history, the oldest first.
  setHistory(minutes) {
    this.minutes = minutes;
    this.showHistory();
  }

  showHistory() {
    const { parts, minutes } = this;
    parts.show("no-history", minutes.length === 0);
    parts.show("as-table", minutes.length > 0);
    if (minutes.length === 0) return parts.get("plots").replaceChildren();
    const data = binned(minutes, this.span, Date.now() / 1000);
    drawPlots(parts.get("plots"), data);
    if (parts.get("as-table").open) parts.get("rows").replaceChildren(...tableRows(data));
    return undefined;
  }
}

function tableRows(data) {
  const rows = data.bins.map((bin, at) => {
    if (!bin) return null;
    const row = make("tr");
    row.append(make("th", clock(new Date(1000 * (data.from_s + at * data.step_s))), { scope: "row" }));
    const rate = bin.inputs ? bin.filtered / bin.inputs : null;
    const cells = [count(Math.round(bin.inputs)), share(rate), significant(bin.wanted),
      `${significant(bin.model_s)} s`, count(bin.errors)];
    row.append(...cells.map((cell) => make("td", cell)));
    return row;
  });
  return rows.filter(Boolean).reverse();
}

function quietNote(status) {
  if (!status.quiet_alarm) return "";
  return `Everything was filtered for ${lasted(status.quiet_s)}, longer than its data ever did `
    + `(${lasted(status.longest_quiet_s)}): is the view blocked, or the filter wrong?`;
}

function linkNote(status) {
  if (!status.link) return "";
  const waiting = status.waiting ? ` ${count(status.waiting)} inputs wait.` : "";
  return `The server is away: ${status.link}.${waiting}`;
}

function degradedNote(status) {
  return status.degraded ? `The promise is suspended: ${status.degraded}` : "";
}

function boundNote(point, confidence) {
  const sure = confidence ? ` at ${share(confidence, 0)} confidence` : "";
  return `“At least” is ${point.kind === "guarantee" ? "proven" : "an estimate"}${sure}.`;
}

function effectOf(now, then) {
  if (!now) return "";
  const more = 100 * (now.filtering_rate - then.filtering_rate);
  if (Math.abs(more) < 0.05) return "The model would get as many inputs as now.";
  const number = significant(Math.abs(more));
  return `The model would get ${number} ${more > 0 ? "more" : "fewer"} of 100 inputs.`;
}

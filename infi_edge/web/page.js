// Asks the daemon how it is, every other second while the page is looked at, and shows it.

import { Parts, bytes, clock, count, lasted, make, share, significant } from "/format.js";
import { SourceCard, TONES } from "/source.js";

const EVERY_MS = 1500;
const HISTORY_EVERY_MS = 60000;

const parts = new Parts(document.body);
const cards = new Map();
let timer = 0;
let answered = null;
let historyAsked = 0;
let overview = "";

async function ask(path) {
  const response = await fetch(path, { signal: AbortSignal.timeout(5000) });
  if (response.status === 401) location.reload(); // the session has ended: the login page
  if (!response.ok) throw new Error(`${response.status}`);
  return response.json();
}

async function refresh() {
  clearTimeout(timer);
  if (document.hidden) return;
  try {
    show(await ask("/api/status"));
    if (Date.now() - historyAsked > HISTORY_EVERY_MS) {
      historyAsked = Date.now();
      showHistory(await ask("/api/history"));
    }
    answered = new Date();
    away("");
  } catch (error) {
    if (!(error instanceof TypeError) && !(error instanceof DOMException)) console.error(error);
    const since = answered
      ? `since ${clock(answered, true)}. What is below is from then.`
      : "yet.";
    away(`The daemon does not answer ${since}`);
  }
  clearTimeout(timer);
  timer = setTimeout(refresh, EVERY_MS);
}

function away(sentence) {
  parts.note("away", sentence);
  document.body.classList.toggle("stale", sentence !== "");
  if (sentence) {
    parts.text("health", "no answer");
    parts.tone("health", "bad");
  }
}

function show(status) {
  parts.text("version", `version ${status.version}`);
  parts.text("uptime", `· up ${lasted(status.uptime_s)}`);
  const failing = status.sources.filter((source) => source.state === "failing").length;
  const alarms = status.sources.filter((source) => source.quiet_alarm).length;
  const [health, tone] = healthOf(status, failing, alarms);
  parts.text("health", health);
  parts.tone("health", tone);
  document.title = tone === "bad" ? `${health} – infi-edge` : "infi-edge";
  parts.note("budget", status.budget ? `Over budget: ${status.budget}` : "");
  const reload = status.reload_sentence;
  parts.note("reload", reload && `The new configuration was refused: ${reload}`);
  showTotals(status.sources);
  showOverview(status.sources);
  showSources(status);
  showMachine(status);
  showSinks(status.sinks);
}

function healthOf(status, failing, alarms) {
  const all = status.sources.length;
  if (failing) return [`${failing} of ${all} failing`, "bad"];
  if (alarms) return [`${alarms} of ${all} too quiet`, "bad"];
  if (status.budget) return ["over budget", "warn"];
  const live = status.sources.filter((source) => source.state === "live").length;
  if (live === all) return [all === 1 ? "live" : `all ${all} live`, "good"];
  return [`${live} of ${all} live`, "idle"];
}

function showTotals(sources) {
  const sum = (read) => sources.reduce((total, source) => total + read(source), 0);
  const saved = sum((source) => (source.counts.skip ?? 0) + (source.counts.reuse ?? 0));
  const inputs = sum((source) => source.inputs);
  parts.show("totals", sources.length > 1);
  parts.text("rate", share(inputs ? saved / inputs : null));
  parts.text("saved", count(saved));
  parts.text("saved-time", lasted(sum((source) => source.model_saved_s)));
  parts.text("saved-bytes", bytes(sum((source) => source.bytes_saved)));
}

function showOverview(sources) {
  parts.show("overview", sources.length > 1);
  const told = sources.map((source) => {
    const tone = source.quiet_alarm ? "bad" : TONES[source.state];
    return [source.name, share(source.filtering_rate, 0), tone ?? "idle"];
  });
  if (JSON.stringify(told) === overview) return;
  overview = JSON.stringify(told);
  const links = told.map(([name, rate, tone]) => {
    const link = make("a", name, { href: `#source-${encodeURIComponent(name)}` });
    link.prepend(make("i", "", { "data-tone": tone }));
    link.append(make("span", rate));
    return link;
  });
  parts.get("overview").replaceChildren(...links);
}

function showSources(status) {
  const at = new Date(status.at);
  const names = status.sources.map((source) => source.name);
  for (const [name, card] of cards) {
    if (names.includes(name)) continue;
    card.element.remove();
    cards.delete(name);
  }
  for (const source of status.sources) {
    let card = cards.get(source.name);
    if (!card) {
      card = new SourceCard(source.name, refresh);
      cards.set(source.name, card);
      parts.get("sources").append(card.element);
      historyAsked = 0;
    }
    card.show(source, at, status.pictures);
  }
}

function showHistory(history) {
  for (const [name, card] of cards) card.setHistory(history[name] ?? []);
}

function showMachine(status) {
  const cores = significant(status.cpu);
  parts.text("cpu", `${cores} ${cores === "1" ? "core" : "cores"}`);
  parts.text("memory", bytes(status.memory_bytes));
  const celsius = status.temperature_c;
  parts.text("temperature", celsius === null ? "not known" : `${Math.round(celsius)} °C`);
  parts.text("throttled", { true: "yes", false: "no" }[status.throttled] ?? "not known");
  parts.text("voltage", { true: "too weak", false: "good" }[status.under_voltage] ?? "not known");
  parts.get("throttled").classList.toggle("alarm", status.throttled === true);
  parts.get("voltage").classList.toggle("alarm", status.under_voltage === true);
  const { done = 0, refused = 0 } = status.reloads;
  parts.text("reloads", refused ? `${done}, and ${refused} refused` : count(done));
}

function showSinks(sinks) {
  parts.show("no-sinks", sinks.length === 0);
  parts.show("sink-table", sinks.length > 0);
  const rows = sinks.flatMap((sink) => {
    const { sent = 0, dropped = 0, failed = 0 } = sink.counts;
    const row = make("tr");
    const name = make("th", sink.name, { scope: "row" });
    name.append(make("span", ` ${sink.kind}`, { class: "kind" }));
    const cells = [sent, sink.queued, dropped + failed];
    row.append(name, ...cells.map((number) => make("td", count(number))));
    if (!sink.sentence) return [row];
    const fault = make("tr");
    fault.append(make("td", sink.sentence, { colspan: 4, class: "fault" }));
    return [row, fault];
  });
  parts.get("sinks").replaceChildren(...rows);
}

document.addEventListener("visibilitychange", refresh);
refresh();

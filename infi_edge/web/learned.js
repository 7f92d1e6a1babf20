// What a source has learned in service: how well it does by its own audit, and from what.

import { count, make, share, took } from "/format.js";

const CHANGES = 5;

// learned: of a source of /api/status; null where nothing is learned.
export function showLearned(parts, learned) {
  parts.show("learned", Boolean(learned));
  if (!learned) return;
  const [state, tone] = stateOf(learned);
  parts.text("learned-state", state);
  parts.tone("learned-state", tone);
  parts.note("not-kept", learned.sentence);
  showLive(parts, learned);
  const { recall } = learned;
  parts.text("live-recall", recall ? `${share(recall.estimate)} (${between(recall)})` : "not known");
  parts.text("learned-inputs", count(learned.inputs));
  parts.text("remembered", `${count(learned.remembered)} inferred ones`);
  const wrong = learned.audit_errors;
  parts.text("audited", `${count(learned.audited)}, ${count(wrong)} of them wrong`);
  parts.text("fits", `${count(learned.fits)} in ${took(learned.cpu_s)} of CPU`);
  parts.text("failed-open", times(learned.failed_open));
  showChanges(parts, learned.changes);
}

function showLive(parts, learned) {
  const { accuracy, target } = learned;
  parts.text("live", share(accuracy?.estimate));
  const sure = `at ${share(learned.confidence, 0)} confidence`;
  parts.text("live-bound", accuracy
    ? `live accuracy; ${between(accuracy)} ${sure}, target ${share(target)}`
    : `live accuracy: no audit yet; target ${share(target)}`);
  const least = Math.min(accuracy?.low ?? 1, target);
  const from = Math.max(0, Math.floor(20 * (2 * least - 1)) / 20);
  const place = (number) => `${(100 * (number - from)) / (1 - from)}%`;
  const interval = parts.get("live-interval").style;
  interval.left = place(accuracy?.low ?? 1);
  interval.right = `calc(100% - ${place(accuracy?.high ?? 1)})`;
  parts.get("live-goal").style.left = place(target);
  parts.text("range-from", share(from, 0));
}

function showChanges(parts, changes) {
  const last = changes.slice(-CHANGES).reverse();
  parts.show("no-changes", last.length === 0);
  const lines = last.map(({ inputs, what }) => {
    const line = make("li", what);
    line.append(make("span", ` after ${count(inputs)} inputs`, { class: "kind" }));
    return line;
  });
  parts.get("changes").replaceChildren(...lines);
}

function stateOf(learned) {
  const frozen = learned.frozen ? "; too hot to learn" : "";
  if (!learned.open) return [`filters${frozen}`, frozen ? "warn" : "good"];
  const first = learned.opened_for === "learning";
  const why = first ? "learns" : `open: ${learned.opened_for}`;
  return [`${why}, all is inferred${frozen}`, first && !frozen ? "idle" : "warn"];
}

function between({ low, high }) {
  return `${share(low)} to ${share(high)}`;
}

function times(number) {
  return number === 1 ? "once" : number === 0 ? "never" : `${count(number)} times`;
}
